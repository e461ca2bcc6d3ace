"""An expert of modules run without its weights: functions stand in for its linear layers."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def between(expert: Any, first: Sequence[str], down: str) -> "Callable[[torch.Tensor], torch.Tensor]":
    """What an expert does between its first linear layers and down, all given by their names in it: from what these
    give, side by side [t, len(first) * width], to what goes into down [t, width]."""

    def part(place: int) -> Callable[[Any], Any]:
        return lambda given: given.chunk(len(first), -1)[place]

    instead = {name: part(place) for place, name in enumerate(first)} | {down: lambda given: given}
    return with_layers(expert, instead)


def with_layers(expert: Any, instead: Mapping[str, Callable[[Any], Any]]) -> Callable[[Any], Any]:
    """The expert's own forward, with these functions in the place of its linear layers by name; the expert itself stays
    as it is."""
    copied = copy.copy(expert)
    copied._modules = dict(expert._modules)
    for name, function in instead.items():
        stand_in = copy.copy(copied._modules[name])
        # Whoever asks for its weight finds it there.
        stand_in._forward_hooks, stand_in._forward_pre_hooks = {}, {}
        stand_in.forward = function
        copied._modules[name] = stand_in
    return copied.forward  # type: ignore[no-any-return]
