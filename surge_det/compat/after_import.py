"""Run a function of ours right after a module of the toolbox is imported."""

import sys
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


class _Loader(Loader):
    """Loads as another loader does, then runs the action."""

    def __init__(self, loader: Loader, action: Action) -> None:
        self._loader = loader
        self._action = action

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        self._action(module)


class _Finder(MetaPathFinder):
    """Finds by the finders after it, and adds the action to their loader."""

    def __init__(self) -> None:
        self.actions: dict[str, Action] = {}

    def find_spec(
        self, name: str, path: Any = None, target: Any = None
    ) -> ModuleSpec | None:
        if name not in self.actions:
            return None
        # Not those before it: one of them may be a finder of this kind, left
        # by an earlier import of this package.
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                spec.loader = _Loader(spec.loader, self.actions[name])
                return spec
        return None


_FINDER = _Finder()


def after_import(name: str, action: Action) -> None:
    """Run ``action(module)`` when a module has been imported.

    A module that has been imported already is handled at once. This imports
    nothing. The action has to be idempotent: it runs again where it is given
    twice, or where the module is reloaded.
    """
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    _FINDER.actions[name] = action
    if name in sys.modules:
        action(sys.modules[name])
