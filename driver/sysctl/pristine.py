"""Remember which sysctl values a new network namespace has.

A sandbox's value that differs from them was set by the container, by Docker or by this driver.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from driver.linux import Kernel
    from driver.model import Sysctl


class PristineValues:
    """The values of a new network namespace, as far as they have been read."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._known: dict[str, str] = {}
        self._refreshed: set[str] | None = None

    @property
    def known(self) -> Mapping[str, str]:
        """The values read so far, by key."""
        return self._known

    def check(self, sysctls: Sequence[Sysctl]) -> None:
        """Try sysctls in a throw-away namespace; raises InvalidRequest, with key and reason."""
        self._known.update(self._kernel.check_sysctls(sysctls))

    def require(self, keys: Collection[str]) -> None:
        """Read the values that are not known yet."""
        self.refresh([key for key in keys if key not in self._known])

    def refresh(self, keys: Collection[str]) -> None:
        """Read the values again: the host may have changed one that new namespaces copy."""
        refreshed = self._refreshed
        if refreshed is not None:
            keys = [key for key in keys if key not in refreshed]
        if keys:
            self._known.update(self._kernel.read_pristine(keys))
        if refreshed is not None:
            refreshed.update(keys)

    @contextmanager
    def refreshed_once(self) -> Iterator[None]:
        """Read each value at most once inside the block.

        The kernel makes a namespace and destroys it for that, 20 ms for each of the sandboxes that
        keep their own values.
        """
        self._refreshed = set()
        try:
            yield
        finally:
            self._refreshed = None
