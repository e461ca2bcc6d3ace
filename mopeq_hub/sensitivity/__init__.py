"""Signals: each gives every expert a number, its sensitivity. The registry, and the Profile they fill."""

from collections.abc import Callable

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.experts import Layout
from mopeq_hub.progress import Advance
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import hessian
from mopeq_hub.sensitivity.profile import Profile

Signal = Callable[[Checkpoint, Layout, Recipe, Advance], Profile]

SIGNALS: dict[str, Signal] = {"hessian": hessian.measure}


def measure(checkpoint: Checkpoint, layout: Layout, recipe: Recipe, advance: Advance) -> Profile:
    """The profile that the recipe's signal gives; `advance` is told the bytes of weights read."""
    return SIGNALS[recipe.signal](checkpoint, layout, recipe, advance)


__all__ = ["SIGNALS", "Profile", "Signal", "measure"]
