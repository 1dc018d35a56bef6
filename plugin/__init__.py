"""The Docker plugin around the driver: HTTP, the process, the command line."""
