"""Kernel parameters of sandboxes: who asks for them, what is written, what is put back."""
