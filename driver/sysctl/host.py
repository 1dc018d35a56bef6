"""Find the host's sysctls that a network inherits: which ones, and their values at a join.

A network names patterns; they are matched against the sysctls that a namespace of this kernel has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from driver.errors import InvalidRequest
from driver.model import Sysctl
from driver.sysctl.policy import is_same, match

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from driver.linux import Kernel
    from driver.sysctl.policy import SysctlPolicy

SHOWN = 3  # sysctls that an error names


class HostSysctls:
    """The sysctls of this host that networks can inherit. Thread-safe."""

    def __init__(self, kernel: Kernel, policy: SysctlPolicy) -> None:
        self._kernel = kernel
        self._policy = policy
        self._defaults = frozenset(sysctl.key for sysctl in policy.defaults)
        self._pristine: Mapping[str, str] = {}

    def check(self, patterns: Sequence[str]) -> None:
        """Try the host's values of what the patterns match in a throw-away namespace.

        Raises InvalidRequest that names the pattern, or the sysctl, and the reason.
        """
        if not patterns:
            return
        self._pristine = self._kernel.read_pristine()  # modules may have brought more
        for pattern in patterns:
            keys = match([pattern], self._pristine)
            if not keys:
                raise InvalidRequest(f"inherit {pattern}: {self._why_nothing(pattern)}")
            self._policy.check_keys(keys)
        try:
            self._kernel.check_sysctls(self.read(patterns))
        except InvalidRequest as error:
            raise InvalidRequest(f"inherit the host's {error}") from error

    def read(self, patterns: Sequence[str]) -> tuple[Sysctl, ...]:
        """Return what a sandbox that is joined now inherits.

        Without the values that it has anyway, unless the operator's defaults would change them.
        """
        if not patterns:
            return ()
        if not self._pristine:  # the driver has been restarted
            self._pristine = self._kernel.read_pristine()
        pristine = self._pristine
        found = self._kernel.read_host(match(patterns, pristine))
        return tuple(
            Sysctl(key, value)
            for key, value in sorted(found.items())
            if key in self._defaults or not is_same(value, pristine[key])
        )

    def _why_nothing(self, pattern: str) -> str:
        on_host = match([pattern], self._kernel.read_host())
        if not on_host:
            return "this kernel has no such parameter that a network namespace could set"
        more = ", …" if len(on_host) > SHOWN else ""
        return (
            f"{', '.join(on_host[:SHOWN])}{more}: not per network namespace; set on the host, it "
            "holds for every container"
        )
