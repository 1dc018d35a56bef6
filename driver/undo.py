"""Undo steps of a failed operation; carry on through several that may fail."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, ParamSpec, Self

from driver.errors import DriverError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

P = ParamSpec("P")
log = logging.getLogger(__name__)


class Rollback:
    """Undo the pushed steps, newest first, unless the block is left normally.

    An undo that fails is logged and noted on the first error; it never replaces it and never
    keeps the older steps from being undone.
    """

    def __init__(self, on_failure: Callable[[], object] | None = None) -> None:
        """Begin with nothing to undo; `on_failure` is called once for each undo that fails."""
        self._undos: list[Callable[[], object]] = []
        self._on_failure = on_failure

    def push(self, undo: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
        """Remember how to take back the step that has just succeeded."""
        self._undos.append(partial(undo, *args, **kwargs))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            return
        while self._undos:
            undo = self._undos.pop()
            try:
                undo()
            except Exception as failure:
                log.exception("could not take back a step after: %s", error)
                error.add_note(f"and taking back a step failed: {failure}")
                if self._on_failure is not None:
                    self._on_failure()


def attempt_all(steps: Iterable[Callable[[], object]]) -> None:
    """Run every step even when some fail, then raise the first failure with the others as notes.

    For deletes: what can go goes, whatever else is stuck.
    """
    failures: list[Exception] = []
    for step in steps:
        try:
            step()
        except Exception as failure:  # noqa: BLE001 - collected, and raised below
            failures.append(failure)
    if failures:
        first, *others = failures
        for other in others:
            first.add_note(f"and: {other}")
        raise first


def attempt_each(steps: Iterable[Callable[[], object]]) -> bool:
    """Run every step and log what fails; tell whether nothing did.

    For what must not stop at something that is left over.
    """
    has_failed = False
    for step in steps:
        try:
            step()
        except DriverError as error:
            has_failed = True
            words = "; ".join((str(error), *getattr(error, "__notes__", ())))
            log.error("a step failed, and is tried again later; %s", words)  # noqa: TRY400 - says all
        except Exception:
            has_failed = True
            log.exception("a step failed, and is tried again later; the rest goes on")
    return not has_failed
