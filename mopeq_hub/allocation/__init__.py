"""Allocators: sensitivities in, a BitMap out. The registry."""

from collections.abc import Callable

from mopeq_hub.allocation import kmeans
from mopeq_hub.bitmap import BitMap
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import Profile

Allocator = Callable[[Profile, Recipe], BitMap]

ALLOCATORS: dict[str, Allocator] = {"kmeans": kmeans.allocate}


def allocate(profile: Profile, recipe: Recipe) -> BitMap:
    """The bit map that the recipe's allocator makes of a profile."""
    return ALLOCATORS[recipe.allocator](profile, recipe)


__all__ = ["ALLOCATORS", "Allocator", "allocate"]
