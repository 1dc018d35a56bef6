"""The state file, its recovery, and the reserve for a full disk."""
