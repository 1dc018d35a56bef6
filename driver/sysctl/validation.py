"""Validate requested sysctls before anything exists: by the operator's policy, and by trying them.

Tried in a throw-away network namespace, so that a wrong name or value is refused where it was
given. Takes no lock.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from driver.errors import InvalidRequest

if TYPE_CHECKING:
    from driver.health import Health
    from driver.model import Sysctl
    from driver.sysctl.host import HostSysctls
    from driver.sysctl.policy import SysctlPolicy
    from driver.sysctl.pristine import PristineValues

DEFAULTS = "PYNET_DEFAULT_SYSCTLS"
log = logging.getLogger(__name__)


class SysctlValidation:
    """Validation of the sysctls of networks and endpoints, and of the operator's defaults."""

    def __init__(
        self, policy: SysctlPolicy, pristine: PristineValues, host: HostSysctls, health: Health
    ) -> None:
        self._policy = policy
        self._pristine = pristine
        self._host = host
        self._health = health
        self._untried = policy.defaults

    def check(self, sysctls: tuple[Sysctl, ...], inherit: tuple[str, ...] = ()) -> None:
        """Validate sysctls, and the patterns of what is inherited from the host.

        Raises InvalidRequest that names the sysctl and the reason: this kernel's, or that the
        operator does not let users set it.
        """
        self._policy.check(sysctls)
        self._pristine.check(sysctls)
        self._host.check(inherit)

    def check_defaults(self) -> None:
        """Validate the operator's defaults, until this kernel has taken them once.

        While it does not, health says so: no network can be made.
        """
        if not self._untried:
            return
        try:
            self._pristine.check(self._untried)
        except InvalidRequest as error:
            problem = f"default for all networks of this host, {DEFAULTS}: {error}"
            self._health.report(DEFAULTS, f"no network can be made: {problem}")
            raise InvalidRequest(problem) from error
        self._untried = ()
        self._health.clear(DEFAULTS)

    def log_refused_defaults(self) -> None:
        """Log at the start that a default is refused; networks that exist do without it."""
        try:
            self.check_defaults()
        except InvalidRequest as error:
            log.error("no network can be made: %s", error)  # noqa: TRY400 - the words say it all
