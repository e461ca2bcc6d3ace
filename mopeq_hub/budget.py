"""The bytes that a recipe's budget leaves to what competes for them: the routed experts, and the rest where it does."""

import math

from mopeq_hub.allocation import Room
from mopeq_hub.allocation.room import Member
from mopeq_hub.bitmap import BitMap, competing
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Alike
from mopeq_hub.model import Model
from mopeq_hub.quantization.stream import output_shards, plan_units
from mopeq_hub.recipe import Recipe
from mopeq_hub.sizes import output_bytes, written_bytes

Sizes = dict[Member, tuple[int, ...]]
_TENSOR_SPARE, _FILE_SPARE = 2, 64
"""Bytes by which headers may be longer where layers outside the experts stay at 16 bits: a digit more in each offset of
a tensor, and what a further file has."""


def room_for(model: Model, recipe: Recipe) -> Room | None:
    """What may be taken by all that competes; None where the recipe has no budget.

    `bpw` counts the routed experts alone, their scales and zero points included; `GB`, `MB` and `x`, of the original,
    count all safetensors files. Raises MopeqError where the recipe's widths do not reach down to the budget, or a width
    does not suit the experts.
    """
    if not recipe.budget:
        return None
    sizes: Sizes = {}
    for each in model.alike:
        sizes |= dict.fromkeys(each.places, _sizes(each, recipe))
    sizes |= _of_the_rest(model, recipe)
    amount, unit = recipe.budget_parts
    bytes_each, beside = _scale(model, recipe, sizes, unit)
    capacity = math.floor(amount * bytes_each) - beside
    widest = recipe.widths.index(recipe.bits[-1])
    smallest = sum(of[0] for of in sizes.values())
    largest = sum(of[-1] if isinstance(member, str) else of[widest] for member, of in sizes.items())
    if capacity < smallest:
        least, most = (math.ceil(1000 * (total + beside) / bytes_each) / 1000 for total in (smallest, largest))
        widths = ", ".join(map(str, recipe.bits))
        rest = " and the rest 16" if recipe.rest_bits == "auto" else ""
        raise MopeqError(
            f"a budget of {recipe.budget} is too small for {model.source.name} at {widths} bits",
            f"the smallest is {least:g}{unit}; from {most:g}{unit} on every expert has {recipe.bits[-1]} bits{rest}",
        )
    return Room(sizes, capacity)


def _sizes(matrices: Alike, recipe: Recipe) -> tuple[int, ...]:
    """Bytes of each of these at each of the widths that compete."""
    return tuple(written_bytes(matrices, bits, recipe.group_size) for bits in recipe.widths)


def _of_the_rest(model: Model, recipe: Recipe) -> Sizes:
    """The same of the layers outside the experts that compete with them, in the order of the files."""
    names = [matrix.name for matrix in competing(model.layout, recipe)]
    found = {matrix.name: each for each in model.alike if names and not each.places for matrix in each.matrices}
    return {name: _sizes(found[name], recipe) for name in names}


def _scale(model: Model, recipe: Recipe, sizes: Sizes, unit: str) -> tuple[float, int]:
    """How many bytes one of the unit is, and how many of the budget's go to other things than what competes."""
    if unit == "bpw":
        return model.layout.routed_size / 8, 0
    # At the widest the headers are longest; those of the rest where it is packed, which takes three tensors each.
    packed = {member: 8 for member in sizes if isinstance(member, str)}
    widest = BitMap(BitMap.uniform(model.layout, recipe.bits[-1]).bits, packed)
    shards = output_shards(plan_units(model.checkpoint, model.layout, widest, recipe))
    files = sum(len(shard.header()[0]) for shard in shards) + sum(output_bytes(model, widest, recipe).values())
    experts = recipe.widths.index(recipe.bits[-1])
    eight = recipe.widths.index(8) if packed else 0
    beside = files - sum(of[eight if member in packed else experts] for member, of in sizes.items())
    if packed:
        beside += _TENSOR_SPARE * sum(len(shard.tensors) for shard in shards) + _FILE_SPARE * (1 + len(shards))
    original = sum(model.source.files()[shard] for shard in model.checkpoint.shards)
    return {"GB": 1e9, "MB": 1e6, "x": float(original)}[unit], beside
