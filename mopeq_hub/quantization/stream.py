"""The stream: every tensor of a checkpoint read once, in the order of its files, quantized or kept, and written to its
place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from mopeq_hub.bitmap import BitMap, divides, packed_bytes, width_of
from mopeq_hub.checkpoint import ITEM_BYTES, Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Layout, Matrix
from mopeq_hub.kernels.norm import all_finite
from mopeq_hub.progress import Advance
from mopeq_hub.quantization.packing import Packed, quantize
from mopeq_hub.quantization.shards import ShardPlan, ShardWriter, TensorPlan, plan_shards, write_index
from mopeq_hub.recipe import GROUP_SIZES, Recipe

_NOTHING: Mapping[str, Packed] = MappingProxyType({})


@dataclass(frozen=True)
class Piece:
    """What becomes of (a slice of) one source tensor: a packed matrix, or the tensor as it is under its live name."""

    source: str
    name: str
    matrix: Matrix | None
    bits: int
    tensors: tuple[TensorPlan, ...]
    nbytes: int
    """Of the source."""


def plan_pieces(checkpoint: Checkpoint, layout: Layout, bitmap: BitMap, recipe: Recipe) -> list[Piece]:
    """Everything that will be written, in the order in which the source is read.

    Raises MopeqError where an expert's shape does not divide into groups and words.
    """
    matrices: dict[str, list[Matrix]] = {}
    for matrix in layout.matrices:
        matrices.setdefault(matrix.source, []).append(matrix)
    pieces: list[Piece] = []
    for info in checkpoint.in_file_order():
        for matrix in matrices.get(info.name, []):
            bits = width_of(matrix, bitmap, recipe)
            nbytes = math.prod(matrix.shape) * ITEM_BYTES[info.dtype]
            if bits == 16:
                whole = TensorPlan(f"{matrix.name}.weight", info.dtype, matrix.shape)
                pieces.append(Piece(info.name, matrix.name, matrix, bits, (whole,), nbytes))
            else:
                check_divides(matrix, recipe.group_size)
                packed = _packed_plan(matrix, bits, recipe.group_size)
                pieces.append(Piece(info.name, matrix.name, matrix, bits, packed, nbytes))
        if info.name in layout.kept:
            name = layout.kept[info.name]
            pieces.append(Piece(info.name, name, None, 16, (TensorPlan(name, info.dtype, info.shape),), info.nbytes))
    return pieces


def write_checkpoint(
    checkpoint: Checkpoint,
    layout: Layout,
    bitmap: BitMap,
    recipe: Recipe,
    folder: Path,
    advance: Advance,
    tuned: Mapping[str, Packed] = _NOTHING,
) -> list[ShardPlan]:
    """Quantize the checkpoint into safetensors shards and an index in `folder`; `advance` is told the source bytes
    done.

    tuned: packed weights by the name of their matrix, taken as they are instead of being quantized here.
    Raises MopeqError on NaN or infinite weights, naming the tensor.
    """
    pieces = plan_pieces(checkpoint, layout, bitmap, recipe)
    shards = plan_shards([tensor for piece in pieces for tensor in piece.tensors], recipe.shard_size)
    with ShardWriter(folder, shards) as writer:
        for piece in pieces:
            for name, data in produce(checkpoint, piece, recipe, tuned).items():
                writer.write(name, data)
            advance(piece.nbytes)
    write_index(folder, shards)
    return shards


def produce(
    checkpoint: Checkpoint, piece: Piece, recipe: Recipe, tuned: Mapping[str, Packed] = _NOTHING
) -> dict[str, np.ndarray]:
    """What is written of one piece, by tensor name; `tuned` as in `write_checkpoint`. Raises MopeqError on NaN or
    infinite weights, naming the tensor."""
    if piece.bits == 16:
        values = piece.matrix.read(checkpoint).values if piece.matrix else checkpoint.array(piece.source)
        if not all_finite(values, piece.tensors[0].dtype):
            raise MopeqError(
                f"{piece.source} holds NaN or infinite values",
                "the source is damaged or was trained to nowhere; use another",
            )
        return {piece.tensors[0].name: values}
    packed = tuned[piece.name] if piece.name in tuned else _quantized(checkpoint, piece, recipe)
    return {f"{piece.name}.{part}": data for part, data in packed.tensors().items()}


def _quantized(checkpoint: Checkpoint, piece: Piece, recipe: Recipe) -> Packed:
    assert piece.matrix is not None
    weight = piece.matrix.read(checkpoint)
    try:
        return quantize(weight, piece.bits, recipe.group_size, recipe.symmetric, search=recipe.quantizer != "rtn")
    except MopeqError as error:
        raise MopeqError(f"{piece.source} holds {error.what}", error.hint) from None


def _packed_plan(matrix: Matrix, bits: int, group_size: int) -> tuple[TensorPlan, ...]:
    rows, columns = matrix.shape
    groups = columns // group_size
    plans = (
        TensorPlan(f"{matrix.name}.qweight", "I32", (columns * bits // 32, rows)),
        TensorPlan(f"{matrix.name}.qzeros", "I32", (groups, rows * bits // 32)),
        TensorPlan(f"{matrix.name}.scales", "F16", (groups, rows)),
    )
    assert sum(plan.nbytes for plan in plans) == packed_bytes(matrix.shape, bits, group_size)
    return plans


def check_divides(matrix: Matrix, group_size: int) -> None:
    """Raises MopeqError where an expert's weight does not divide into groups and words."""
    if divides(matrix.shape, group_size):
        return
    rows, columns = matrix.shape
    fitting = [size for size in GROUP_SIZES if divides(matrix.shape, size)]
    raise MopeqError(
        f"{matrix.source} of shape [{rows}, {columns}] does not divide into groups of {group_size}",
        f"use --group-size {fitting[-1]}" if fitting else "auto-round's layout needs multiples of 32 both ways",
    )
