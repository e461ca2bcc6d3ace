"""The bytes that a recipe's budget leaves to the routed experts of a model."""

import math

from mopeq_hub.allocation import Room
from mopeq_hub.bitmap import BitMap, packed_bytes
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Expert
from mopeq_hub.model import Model
from mopeq_hub.quantization.stream import output_shards, plan_units
from mopeq_hub.recipe import Recipe

Sizes = dict[tuple[Expert, str], tuple[int, ...]]


def room_for(model: Model, recipe: Recipe) -> Room | None:
    """What the experts may take; None where the recipe has no budget.

    `bpw` counts the routed experts alone, their scales and zero points included; `GB`, `MB` and `x`, of the original,
    count all safetensors files. Raises MopeqError where the recipe's widths do not reach down to the budget, or a width
    does not suit the experts.
    """
    if not recipe.budget:
        return None
    sizes = {
        (expert, str(matrix.projection)): tuple(
            packed_bytes(matrix.shape, bits, recipe.group_size) for bits in recipe.bits
        )
        for expert, matrices in model.layout.experts.items()
        for matrix in matrices
    }
    amount, unit = recipe.budget_parts
    bytes_each, beside = _scale(model, recipe, sizes, unit)
    capacity = math.floor(amount * bytes_each) - beside
    smallest, largest = (sum(of[place] for of in sizes.values()) for place in (0, -1))
    if capacity < smallest:
        least, most = (math.ceil(1000 * (total + beside) / bytes_each) / 1000 for total in (smallest, largest))
        widths = ", ".join(map(str, recipe.bits))
        raise MopeqError(
            f"a budget of {recipe.budget} is too small for {model.source.name} at {widths} bits",
            f"the smallest is {least:g}{unit}; from {most:g}{unit} on every expert has {recipe.bits[-1]} bits",
        )
    return Room(sizes, capacity)


def _scale(model: Model, recipe: Recipe, sizes: Sizes, unit: str) -> tuple[float, int]:
    """How many bytes one of the unit is, and how many of the budget's go to other things than experts."""
    if unit == "bpw":
        weights = sum(math.prod(matrix.shape) for group in model.layout.experts.values() for matrix in group)
        return weights / 8, 0
    # At the widest the headers are longest.
    widest = BitMap.uniform(model.layout, recipe.bits[-1])
    shards = output_shards(plan_units(model.checkpoint, model.layout, widest, recipe))
    files = sum(len(shard.header()[0]) + sum(tensor.nbytes for tensor in shard.tensors) for shard in shards)
    beside = files - sum(of[-1] for of in sizes.values())
    original = sum(model.source.files()[shard] for shard in model.checkpoint.shards)
    return {"GB": 1e9, "MB": 1e6, "x": float(original)}[unit], beside
