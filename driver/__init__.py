"""What a pynet network is, and making the kernel have it. Knows nothing of HTTP."""
