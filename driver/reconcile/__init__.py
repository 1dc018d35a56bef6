"""Desired and observed state: compare, reconcile, watch."""
