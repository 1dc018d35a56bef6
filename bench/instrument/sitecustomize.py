"""Have a driver that is started with this folder on its path write down what it spends time on.

Python imports this by itself when it starts. Nothing in the product knows of it: modules are
changed as they are imported, from outside.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING

from bench import calls, spans
from bench.spans import SPANS, wrap_module

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class _Wrapping(Loader):
    """Load a module as its own loader does, then wrap what is to be measured."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        wrap_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in SPANS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Wrapping(spec.loader)
        return spec


if spans.PATH:
    sys.meta_path.insert(0, _Finder())
if calls.PATH:
    calls.install()
