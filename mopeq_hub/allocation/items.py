"""Items: what is given one width together, as the recipe's granularity has it, with what an allocator may know."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from mopeq_hub.allocation.room import Member, Room
from mopeq_hub.experts import Expert
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import Profile
from mopeq_hub.sensitivity.profile import Values

Item = tuple[Member, ...]
"""Members that get one width."""


@dataclass(frozen=True)
class Items:
    """Items that compete with each other for bits.

    members [n]. widths: that compete, rising. values [n]: the items' sensitivities. costs [n, widths]: what each width
    costs, infinite where an item cannot have it, which are always the widest. sizes [n, widths], bytes, rising, and the
    `capacity` of all; None where the recipe has no budget.
    """

    members: Sequence[Item]
    widths: tuple[int, ...]
    values: NDArray[np.float64]
    costs: NDArray[np.float64]
    sizes: NDArray[np.int64] | None
    capacity: int

    @property
    def room(self) -> tuple[NDArray[np.int64], int]:
        """Sizes and capacity. Raises ValueError where there is no budget."""
        if self.sizes is None:
            raise ValueError("this allocator needs a budget")
        return self.sizes, self.capacity


def items_of(profile: Profile, recipe: Recipe, room: Room | None) -> list[Items]:
    """The items of a model: of all layers together, or of each by themselves, with a share of the room by size.

    Each linear layer outside the experts that has a place in the room is an item beside theirs; all compete then.
    """
    members = sorted((expert, name) for expert, parts in profile.experts.items() for name in parts)
    layers = [list(group) for _, group in groupby(members, key=lambda member: member[0].layer)]
    competing = [members] if recipe.scope == "model" else layers
    rest: list[Item] = [(member,) for member in (room.sizes if room else ()) if isinstance(member, str)]
    return [_items(profile, recipe, room, [*_grouped(group, recipe.granularity), *rest]) for group in competing]


def _grouped(members: Iterable[tuple[Expert, str]], granularity: str) -> Iterable[Item]:
    if granularity == "projection":
        return ((member,) for member in members)
    if granularity == "layer":
        return (tuple(group) for _, group in groupby(members, key=lambda member: member[0].layer))
    return (tuple(group) for _, group in groupby(members, key=lambda member: member[0]))


def _items(profile: Profile, recipe: Recipe, room: Room | None, items: list[Item]) -> Items:
    def of(member: Member) -> Values:
        return profile.rest[member] if isinstance(member, str) else profile.experts[member[0]][member[1]]

    def cost(member: Member, bits: int) -> float:
        open_to_it = bits in recipe.bits or isinstance(member, str)
        return profile.cost(of(member), bits) if open_to_it else math.inf

    values = np.array([sum(of(member)[0] for member in item) for item in items])
    costs = np.array([[sum(cost(member, bits) for member in item) for bits in recipe.widths] for item in items])
    if room is None:
        return Items(items, recipe.widths, values, costs, None, 0)
    sizes = np.array([np.sum([room.sizes[member] for member in item], axis=0) for item in items], np.int64)
    whole = sum(each[-1] for each in room.sizes.values())
    return Items(items, recipe.widths, values, costs, sizes, room.capacity * int(sizes[:, -1].sum()) // whole)
