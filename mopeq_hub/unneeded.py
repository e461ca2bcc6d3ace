"""What importing transformers brings along and no command calls in its own process: scipy and torch.distributed,
without which transformers is content, and torch's compiler, which is put off until somebody asks for it. They take a
third of what starting takes.

Processes that run models import everything, as does whoever has `import mopeq_hub` in a program of theirs.
"""

import sys
from collections.abc import Callable
from functools import wraps
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder
from threading import RLock
from types import FunctionType, ModuleType
from typing import Any

from mopeq_hub.after_import import after_import

_LEFT_OUT = ("is_scipy_available", "is_torch_distributed_available")
"""By which transformers decides whether to import these; losses of detectors and models on several machines need
them."""
_COMPILER = "torch._dynamo"
_ALONE = f"{_COMPILER}._trace_wrapped_higher_order_op"
"""The part of the compiler that transformers' masks import. It needs nothing of the others."""
_MARKS = ("assume_constant_result", "allow_in_graph")
"""Decorators that tell the compiler something of a function and leave it as it is."""


def spare() -> None:
    """From now on, if transformers is not imported yet, it comes without these."""
    if "transformers" not in sys.modules and _COMPILER not in sys.modules:
        after_import({"transformers.utils.import_utils": _leave_out})
        sys.meta_path.insert(0, _Compiler())


def _leave_out(module: ModuleType) -> None:
    for name in _LEFT_OUT:
        if hasattr(module, name):
            setattr(module, name, lambda: False)


class _Compiler(Loader):
    """Finds the compiler's package, and runs its module once something of it is asked for, or a part of it imported."""

    def __init__(self) -> None:
        self._lock, self._runs = RLock(), False
        self._marked: list[tuple[str, Any]] = []

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.startswith(f"{_COMPILER}.") and name != _ALONE:
            self._run()
        if name != _COMPILER or self._runs:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        self._module = module
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        named = {name: self._mark(name) for name in _MARKS}
        vars(module).update(named, disable=self._disable, __getattr__=self._asked)

    def _asked(self, name: str) -> Any:
        """A name that the module does not have so far."""
        if not name.startswith("__"):
            self._run()
        try:
            return vars(self._module)[name]
        except KeyError:
            raise AttributeError(f"module {_COMPILER!r} has no attribute {name!r}") from None

    def _run(self) -> None:
        with self._lock:
            if not self._runs:
                self._runs = True
                self._loader.exec_module(self._module)
                for name, marked in self._marked:
                    getattr(self._module, name)(marked)

    def _mark(self, name: str) -> Callable[[Any], Any]:
        def mark(given: Any) -> Any:
            self._marked.append((name, given))
            return given

        return mark

    def _disable(self, function: Any = None, *given: Any, **named: Any) -> Any:
        """A function that is never compiled, which without the compiler none is."""
        if function is None:
            return lambda function: self._disable(function, *given, **named)
        if not isinstance(function, FunctionType):
            self._run()
            return self._module.disable(function, *given, **named)

        @wraps(function)
        def disabled(*args: Any, **kwargs: Any) -> Any:
            called = self._module.disable(function, *given, **named) if self._runs else function
            return called(*args, **kwargs)

        return disabled
