"""Bytes of what would be published, known without planning each tensor: sums over groups of matrices that are alike."""

from collections import Counter
from typing import Any

from mopeq_hub.bitmap import BitMap, competing, packed_bytes, width_of
from mopeq_hub.experts import Alike
from mopeq_hub.kept import kept_as, kept_dtype
from mopeq_hub.model import Model
from mopeq_hub.quantization.shards import TensorPlan
from mopeq_hub.quantization.stream import check_divides
from mopeq_hub.recipe import Recipe
from mopeq_hub.tensors import ITEM_BYTES


def sizes(model: Model, recipe: Recipe, bitmap: BitMap) -> dict[str, Any]:
    """Bytes and bits per weight of what is published, beside the source's and those with every expert at 4 bits."""
    published = sum(output_bytes(model, bitmap, recipe).values())
    ours, rest, rest_bytes, more = 0, 0, 0, _more_of_the_rest(model, recipe, bitmap)
    for each in model.alike:
        for bits, count in _counted(each, bitmap, recipe).items():
            taken = count * written_bytes(each, bits, recipe.group_size)
            if each.places:
                ours += taken
                more += count * written_bytes(each, 4, recipe.group_size) - taken
            elif bits != 16:
                rest += count * each.size
                rest_bytes += taken
    weights = model.layout.routed_size
    return {
        "source_bytes": model.checkpoint.nbytes,
        "published_bytes": published,
        "uniform_4bit_bytes": published + more,
        "expert_weights": weights,
        "experts_bpw": round(8 * ours / weights, 4),
        "quantized_bpw": round(8 * (ours + rest_bytes) / (weights + rest), 4),
    }


def output_bytes(model: Model, bitmap: BitMap, recipe: Recipe) -> dict[str, int]:
    """Bytes of the tensors that come of each file of the source, as in the units of `stream.plan_units`.

    Raises MopeqError where an expert's shape does not divide into groups and words.
    """
    checkpoint = model.checkpoint
    found = dict.fromkeys(checkpoint.shards, 0)
    for each in model.alike:
        for bits, count in _counted(each, bitmap, recipe).items():
            if bits != 16:
                check_divides(each.matrices[0], recipe.group_size)
            found[each.file] += count * written_bytes(each, bits, recipe.group_size)
    order: dict[str, int] = {}
    for kept in model.layout.kept.values():
        last = kept.sources[0]
        if len(kept.sources) > 1:
            order = order or {info.name: place for place, info in enumerate(checkpoint.in_file_order)}
            last = max(kept.sources, key=order.__getitem__)
        nbytes = TensorPlan(kept.name, kept_dtype(checkpoint, kept.sources[0]), kept.shape).nbytes
        found[checkpoint.tensors[last].file] += nbytes
    return {shard: nbytes for shard, nbytes in found.items() if nbytes}


def written_bytes(matrices: Alike, bits: int, group_size: int) -> int:
    """Bytes that each of these takes at a width; at 16 bits it is written as it is stored."""
    if bits != 16:
        return packed_bytes(matrices.shape, bits, group_size)
    return matrices.size * ITEM_BYTES[kept_as(matrices.dtype)]


def _counted(matrices: Alike, bitmap: BitMap, recipe: Recipe) -> Counter[int]:
    """How many of them have each width."""
    if matrices.places:
        return Counter(map(bitmap.bits.__getitem__, matrices.places))
    return Counter(width_of(matrix, bitmap, recipe) for matrix in matrices.matrices)


def _more_of_the_rest(model: Model, recipe: Recipe, bitmap: BitMap) -> int:
    """Bytes by which what competes outside the experts would be larger at the width that it has for all beside uniform
    experts."""
    if not competing(model.layout, recipe):
        return 0
    alike, none = recipe.uniform(4), BitMap({})

    def taken(each: Alike, bitmap: BitMap, recipe: Recipe) -> int:
        widths = _counted(each, bitmap, recipe).items()
        return sum(count * written_bytes(each, bits, recipe.group_size) for bits, count in widths)

    rest = [each for each in model.alike if not each.places]
    return sum(taken(each, none, alike) - taken(each, bitmap, recipe) for each in rest)
