"""Capture packets in several network namespaces at once, for `pynet capture` alone."""
