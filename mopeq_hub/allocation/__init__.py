"""Allocators: sensitivities in, a BitMap out. The registry."""

from collections.abc import Callable, Sequence

from mopeq_hub.allocation import kmeans, knapsack, rank
from mopeq_hub.allocation.items import Items, items_of
from mopeq_hub.allocation.room import Room
from mopeq_hub.bitmap import BitMap
from mopeq_hub.experts import Expert
from mopeq_hub.recipe import MEASURED, Recipe
from mopeq_hub.sensitivity import Profile

Allocator = Callable[[Items, Recipe], Sequence[int]]
"""The widths of items that compete with each other."""

ALLOCATORS: dict[str, Allocator] = {
    "kmeans": kmeans.widths,
    "rank": rank.widths,
    "knapsack": knapsack.widths,
    # What it is before anything was tried (mopeq_hub.selection).
    MEASURED: knapsack.widths,
}


def allocate(profile: Profile, recipe: Recipe, room: Room | None = None) -> BitMap:
    """The bit map that the recipe's allocator makes of a profile: all items compete, or those of each layer.

    room: what the recipe's budget leaves to what competes, where it has one.
    """
    bits: dict[tuple[Expert, str], int] = {}
    rest: dict[str, int] = {}
    for items in items_of(profile, recipe, room):
        for item, width in zip(items.members, ALLOCATORS[recipe.allocator](items, recipe), strict=True):
            for member in item:
                if isinstance(member, str):
                    rest[member] = width
                else:
                    bits[member] = width
    return BitMap(bits, rest)


__all__ = ["ALLOCATORS", "Allocator", "Room", "allocate"]
