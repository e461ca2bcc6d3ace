"""Something to do with a module of another package once it is imported, whether it is already or will be later."""

import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

Then = Callable[[ModuleType], None]


class _Finder:
    """Finds the modules as everybody else does, and does to each what is to be done once it is there."""

    def __init__(self) -> None:
        self.then: dict[str, Then] = {}

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name not in self.then:
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        loader = getattr(spec, "loader", None)
        if loader is not None:
            execute = loader.exec_module

            def execute_and_then(module: ModuleType) -> None:
                execute(module)
                self.then[name](module)

            loader.exec_module = execute_and_then
        return spec


_FINDER = _Finder()


def after_import(then: Mapping[str, Then]) -> None:
    """By the module's name, what to do with it; once, however often this is said."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    for name, act in then.items():
        if name not in _FINDER.then:
            _FINDER.then[name] = act
            if name in sys.modules:
                act(sys.modules[name])
