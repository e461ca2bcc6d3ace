"""Which tokens an expert is called with, where a model calls its experts one by one: followed through the model's own
code.

On the way to its experts a layer puts tokens in another order, each as often as it chose experts. What goes into it is
given numbers, which go along wherever tokens are only moved; whatever is computed of them has none.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

_MOVES = {
    "__getitem__", "broadcast_to", "chunk", "contiguous", "clone", "detach", "double", "expand", "expand_as", "flatten",
    "float", "half", "bfloat16", "index_select", "narrow", "repeat", "repeat_interleave", "reshape", "select", "split",
    "squeeze", "to", "type", "type_as", "unflatten", "unsqueeze", "view", "view_as",
}  # fmt: skip
"""Functions and methods of torch that move tokens and compute nothing."""
_CASTS = {"contiguous", "clone", "detach", "double", "float", "half", "bfloat16", "to", "type", "type_as"}
"""Those that leave them where they are."""


class Tagged(torch.Tensor):
    """Hidden states [..., hidden] whose tokens are numbered: `tags`, of the same shape, the number of its token at each
    place."""

    tags: torch.Tensor

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        plain, named = tree_map(untagged, (args, kwargs))
        result = func(*plain, **named)
        first, name = (args[0] if args else None), getattr(func, "__name__", "")
        if isinstance(first, Tagged) and name in _MOVES:
            return _with(result, first.tags if name in _CASTS else _moved(first.tags, func, plain, named))
        return result


def tagged(states: torch.Tensor) -> torch.Tensor:
    """Hidden states [..., hidden] with their tokens numbered in order."""
    *places, hidden = states.shape
    numbers = torch.arange(states[..., 0].numel(), device=states.device).view(*places, 1)
    return _with(states, numbers.expand(*places, hidden).contiguous())  # type: ignore[no-any-return]


def untagged(value: Any) -> Any:
    """The value without numbers, in the same graph; anything else as it is."""
    if not isinstance(value, Tagged):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(torch.Tensor)


def tags_of(value: Any) -> torch.Tensor | None:
    """The numbers [t] of the tokens in hidden states [..., hidden]; None where they are not known."""
    return value.tags[..., 0].flatten() if isinstance(value, Tagged) else None


def _moved(tags: torch.Tensor, func: Any, plain: Any, named: Any) -> Any:
    """What a function that moves tokens makes of their numbers; None where it cannot."""
    try:
        return func(tags, *plain[1:], **named)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return None


def _with(result: Any, tags: Any) -> Any:
    if isinstance(result, (tuple, list)) and isinstance(tags, (tuple, list)):
        return type(result)(_with(*both) for both in zip(result, tags, strict=True))
    if not torch.is_tensor(result) or not torch.is_tensor(tags) or result.shape != tags.shape:
        return result
    with torch._C.DisableTorchFunctionSubclass():
        found = result.as_subclass(Tagged)
    found.tags = tags
    return found


class Places:
    """The numbers of the tokens that each expert of a list was called with last, where they are known.

    tokens: how many its layer was given.
    """

    def __init__(self, block: Any, experts: Any, wanted: Callable[[], bool]) -> None:
        """block: the live module around the list `experts`. wanted: whether anybody looks at what runs now."""
        self.tokens, self._wanted = 0, wanted
        self.of: dict[Any, torch.Tensor | None] = {}
        block.register_forward_pre_hook(self._number, with_kwargs=True)
        block.register_forward_hook(lambda _, args, output: tree_map(untagged, output))
        for expert in experts:
            expert.register_forward_pre_hook(self._read, with_kwargs=True)

    def _number(self, _: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        self.of.clear()
        if not self._wanted():
            return args, named
        given = [*args, *named.values()]
        place = next(place for place, value in enumerate(given) if torch.is_tensor(value) and value.is_floating_point())
        self.tokens = given[place][..., 0].numel()
        given[place] = tagged(given[place])
        return tuple(given[: len(args)]), dict(zip(named, given[len(args) :], strict=True))

    def _read(self, expert: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
        self.of[expert] = tags_of(next(iter((*args, *named.values()))))
        plain: tuple[Any, Any] = tree_map(untagged, (args, named))
        return plain
