"""The state file, and what becomes of it when it is damaged or the disk is full."""
