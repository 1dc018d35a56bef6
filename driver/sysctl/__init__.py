"""Sysctls of sandboxes: their sources and precedence, what is written, what is restored."""
