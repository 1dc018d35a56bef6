"""The driver: networks, endpoints and what they need of the kernel. No HTTP."""
