"""Allocators: sensitivities in, a BitMap out. The registry."""

from collections.abc import Callable, Sequence
from itertools import groupby

from mopeq_hub.allocation import kmeans, knapsack, rank
from mopeq_hub.allocation.room import Room
from mopeq_hub.bitmap import BitMap
from mopeq_hub.experts import Expert
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import Profile

Allocator = Callable[[Profile, Recipe, Sequence[Expert], Room | None], Sequence[int]]
"""The widths of experts that compete with each other."""

ALLOCATORS: dict[str, Allocator] = {"kmeans": kmeans.widths, "rank": rank.widths, "knapsack": knapsack.widths}


def allocate(profile: Profile, recipe: Recipe, room: Room | None = None) -> BitMap:
    """The bit map that the recipe's allocator makes of a profile: all experts compete, or those of each layer.

    room: what the recipe's budget leaves to the experts, where it has one.
    """
    experts = sorted(profile.sensitivities)
    layers = [list(group) for _, group in groupby(experts, key=lambda expert: expert.layer)]
    bits: dict[Expert, int] = {}
    for competing in [experts] if recipe.scope == "model" else layers:
        bits |= zip(competing, ALLOCATORS[recipe.allocator](profile, recipe, competing, room), strict=True)
    return BitMap(bits)


__all__ = ["ALLOCATORS", "Allocator", "Room", "allocate"]
