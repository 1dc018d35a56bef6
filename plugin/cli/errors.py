"""Errors of calling the driver, without an import of the HTTP client."""


class AskError(Exception):
    """What was asked for cannot be told; the text says why."""


class DriverDown(AskError):  # noqa: N818 - the field calls it by what happened
    """No answer on the driver's socket, or another program's."""
