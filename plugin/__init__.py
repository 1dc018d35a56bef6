"""The Docker plugin around the driver: HTTP, process, command line."""
