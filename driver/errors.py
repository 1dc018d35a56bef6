"""Every way an operation can fail, so that one place can answer for all; imports nothing."""


class DriverError(Exception):
    """Any failure that the person who typed `docker …` gets to read; the text is the whole story.

    Build the text as *what was attempted: why it failed*.
    """


class InvalidRequest(DriverError):  # noqa: N818 - the field calls these by what happened
    """The request cannot be served whatever the state: a malformed value, an unknown option."""


class NotFound(DriverError):  # noqa: N818
    """The request names a network or endpoint that does not exist."""


class Conflict(DriverError):  # noqa: N818
    """The request contradicts what exists: a name, an address or an identity is taken."""


class KernelError(DriverError):
    """The kernel, or a tool that talks to it, refused a step."""


class StoreError(DriverError):
    """The state file could not be read or written."""


class StateDamaged(StoreError):  # noqa: N818
    """What is in the state file is not what was written."""


class Busy(DriverError):  # noqa: N818
    """The driver could not begin, or did not finish, while Docker may be kept waiting."""
