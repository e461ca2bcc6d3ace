"""The stream: every tensor of a checkpoint read once, in the order of its files, quantized or kept, and written to its
place."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from mopeq_hub.bitmap import BitMap, divides, packed_bytes, width_of
from mopeq_hub.checkpoint import Checkpoint, check_finite
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Layout, Matrix
from mopeq_hub.progress import Advance
from mopeq_hub.quantization.packing import Packed, quantize
from mopeq_hub.quantization.shards import ShardPlan, ShardWriter, TensorPlan, plan_shards, write_index
from mopeq_hub.recipe import GROUP_SIZES, Recipe

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Piece:
    """What becomes of (a slice of) one source tensor: a packed matrix, or the tensor as it is under its live name."""

    source: str
    name: str
    matrix: Matrix | None
    bits: int
    tensors: tuple[TensorPlan, ...]


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
            if bits == 16:
                whole = TensorPlan(f"{matrix.name}.weight", info.dtype, matrix.shape)
                pieces.append(Piece(info.name, matrix.name, matrix, bits, (whole,)))
            else:
                check_divides(matrix, recipe.group_size)
                pieces.append(
                    Piece(info.name, matrix.name, matrix, bits, _packed_plan(matrix, bits, recipe.group_size))
                )
        if info.name in layout.kept:
            name = layout.kept[info.name]
            pieces.append(Piece(info.name, name, None, 16, (TensorPlan(name, info.dtype, info.shape),)))
    return pieces


def write_checkpoint(
    checkpoint: Checkpoint,
    layout: Layout,
    bitmap: BitMap,
    recipe: Recipe,
    folder: Path,
    advance: Advance,
    tuned: Mapping[str, Packed] = MappingProxyType({}),
) -> list[ShardPlan]:
    """Quantize the checkpoint into safetensors shards and an index in `folder`; `advance` is told the source bytes
    done.

    tuned: packed weights by the name of their matrix, taken as they are instead of quantizing it here.
    Raises MopeqError on NaN or infinite weights, naming the tensor.
    """
    pieces = plan_pieces(checkpoint, layout, bitmap, recipe)
    shards = plan_shards([tensor for piece in pieces for tensor in piece.tensors], recipe.shard_size)
    with ShardWriter(folder, shards) as writer:
        for piece in pieces:
            tensor = piece.matrix.read(checkpoint) if piece.matrix else checkpoint.tensor(piece.source)
            check_finite(tensor, piece.source)
            if piece.bits == 16:
                writer.write(piece.tensors[0].name, _raw(tensor))
            else:
                packed = tuned[piece.name] if piece.name in tuned else _quantized(tensor, piece.bits, recipe)
                for part, data in packed.tensors().items():
                    writer.write(f"{piece.name}.{part}", data)
            advance(tensor.numel() * tensor.element_size())
    write_index(folder, shards)
    return shards


def _quantized(tensor: "torch.Tensor", bits: int, recipe: Recipe) -> Packed:
    weight = np.ascontiguousarray(tensor.float().numpy())
    return quantize(weight, bits, recipe.group_size, recipe.symmetric, search=recipe.quantizer != "rtn")


def _raw(tensor: "torch.Tensor") -> np.ndarray:
    """The tensor's bytes, C order; NumPy knows no bfloat16."""
    import torch

    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy() if tensor.numel() else np.empty(0, dtype=np.uint8)


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
