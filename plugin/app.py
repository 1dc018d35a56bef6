"""Put together what answers requests: Docker's calls at once, what people ask when they do.

Decides nothing about a request but who answers it.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from driver.counts import Counts
from driver.health import Health
from plugin.calls import DockersCalls, build_operations
from plugin.crew import Deadlines
from plugin.desk import Desk
from plugin.metrics import Calls, Signs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

    from driver.bridge import BridgeDriver


def create_app(
    driver: Callable[[], BridgeDriver],
    health: Health | None = None,
    counts: Counts | None = None,
) -> WSGIApplication:
    """Return the WSGI application that serves the driver, which `driver` waits for.

    Activate and GetCapabilities are answered while it is still starting.
    """
    signs = Signs(Calls(), counts or Counts(), health or Health())
    desk = Desk(driver, Deadlines(signs.health))
    questions = _Questions(desk, driver, signs)
    return DockersCalls(build_operations(driver), desk, signs.calls, questions)


class _Questions:
    """The application of `plugin.questions`, made when it is needed."""

    def __init__(self, desk: Desk, driver: Callable[[], BridgeDriver], signs: Signs) -> None:
        self._made_of = (desk, driver, signs)
        self._lock = Lock()
        self._app: WSGIApplication | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        with self._lock:
            if self._app is None:
                from plugin.questions import create_questions  # noqa: PLC0415 - heavy

                self._app = create_questions(*self._made_of)
        return self._app(environ, start_response)
