"""What differs between the stored and the observed state, and how it is made whole again."""
