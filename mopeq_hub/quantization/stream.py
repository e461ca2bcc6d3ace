"""The stream: a checkpoint becomes packed files shard by shard, every tensor read once, in the order of the files.

A unit is one file of the source and the output files that come of it. Units know nothing of each other, so that they
can be done in any order, by any machine, and again.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from mopeq_hub.bitmap import BitMap, divides, packed_bytes, width_of
from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Layout, Matrix
from mopeq_hub.kept import Kept, kept_dtype
from mopeq_hub.packing import Packed, quantize
from mopeq_hub.progress import Advance
from mopeq_hub.quantization.shards import ShardPlan, ShardWriter, TensorPlan, fill_shards, named
from mopeq_hub.recipe import GROUP_SIZES, Recipe

Watcher = Callable[["Piece", dict[str, np.ndarray]], None]
"""Told what was made of each piece, while the source is still mapped."""

_NOTHING: Mapping[str, Packed] = MappingProxyType({})


@dataclass(frozen=True)
class Piece:
    """What becomes of (a slice of) one source tensor: a packed matrix, or the tensor as it is under its live name.

    source: of several that it is made of, that which comes last. nbytes: of the source.
    """

    source: str
    name: str
    matrix: Matrix | None
    kept: Kept | None
    bits: int
    tensors: tuple[TensorPlan, ...]
    nbytes: int


@dataclass(frozen=True)
class Unit:
    """One file of the source, what is made of it in the order of its data, and the files that this fills."""

    shard: str
    pieces: tuple[Piece, ...]
    outputs: tuple[ShardPlan, ...]

    @property
    def nbytes(self) -> int:
        """Of the source tensors that are used."""
        return sum(piece.nbytes for piece in self.pieces)


def plan_units(checkpoint: Checkpoint, layout: Layout, bitmap: BitMap, recipe: Recipe) -> list[Unit]:
    """Everything that will be written, shard by shard.

    Raises MopeqError where an expert's shape does not divide into groups and words.
    """
    pieces: dict[str, list[Piece]] = {shard: [] for shard in checkpoint.shards}
    matrices: dict[str, list[Matrix]] = {}
    for matrix in layout.matrices:
        matrices.setdefault(matrix.source, []).append(matrix)
    order = {info.name: place for place, info in enumerate(checkpoint.in_file_order)}
    kept: dict[str, list[Kept]] = {}
    for each in layout.kept.values():
        kept.setdefault(max(each.sources, key=order.__getitem__), []).append(each)
    for info in checkpoint.in_file_order:
        for matrix in matrices.get(info.name, []):
            bits = width_of(matrix, bitmap, recipe)
            pieces[info.file].append(_planned(checkpoint, matrix, bits, recipe.group_size))
        for each in kept.get(info.name, []):
            whole = TensorPlan(each.name, kept_dtype(checkpoint, each.sources[0]), each.shape)
            pieces[info.file].append(Piece(info.name, each.name, None, each, 16, (whole,), whole.nbytes))
    used = {shard: made for shard, made in pieces.items() if made}
    filled = [
        fill_shards([tensor for piece in made for tensor in piece.tensors], recipe.shard_size) for made in used.values()
    ]
    return [
        Unit(shard, tuple(made), tuple(outputs))
        for (shard, made), outputs in zip(used.items(), named(filled), strict=True)
    ]


def output_shards(units: list[Unit]) -> list[ShardPlan]:
    """Every file that the units fill, in order."""
    return [output for unit in units for output in unit.outputs]


def quantize_unit(
    checkpoint: Checkpoint,
    unit: Unit,
    recipe: Recipe,
    folder: Path,
    advance: Advance,
    tuned: Mapping[str, Packed] = _NOTHING,
    watch: Watcher | None = None,
) -> None:
    """Write the unit's files into `folder`; `advance` is told the source bytes done.

    tuned: packed weights by the name of their matrix, taken as they are instead of being quantized here.
    Raises MopeqError on NaN or infinite weights, naming the tensor.
    """
    with ShardWriter(folder, unit.outputs) as writer, ThreadPoolExecutor(1, "write") as pool:
        writing: Future[None] | None = None
        for position, piece in enumerate(unit.pieces):
            made = produce(checkpoint, piece, recipe, tuned)
            if watch:
                watch(piece, made)
            following = unit.pieces[position + 1].source if position + 1 < len(unit.pieces) else None
            if writing:
                writing.result()
            finished = piece.source if following != piece.source else None
            writing = pool.submit(_write, writer, made, checkpoint, finished)
            advance(piece.nbytes)
        if writing:
            writing.result()


def _write(writer: ShardWriter, made: dict[str, np.ndarray], checkpoint: Checkpoint, finished: str | None) -> None:
    for name, data in made.items():
        writer.write(name, data)
    if finished:
        checkpoint.let_go(finished)


def produce(
    checkpoint: Checkpoint, piece: Piece, recipe: Recipe, tuned: Mapping[str, Packed] = _NOTHING
) -> dict[str, np.ndarray]:
    """What is written of one piece, by tensor name; `tuned` as in `quantize_unit`. Raises MopeqError on NaN or
    infinite weights, naming the tensor."""
    if piece.bits == 16:
        from mopeq_hub.kernels.norm import all_finite

        plan = piece.tensors[0]
        if piece.kept:
            values = piece.kept.read(checkpoint, checkpoint.tensors[piece.source].file)
        else:
            assert piece.matrix is not None
            values = unquantized(checkpoint, piece.matrix)
        if not all_finite(values, plan.dtype):
            raise MopeqError(
                f"{piece.source} holds NaN or infinite values",
                "the source is damaged or was trained to nowhere; use another",
            )
        return {plan.name: values}
    packed = tuned[piece.name] if piece.name in tuned else _quantized(checkpoint, piece, recipe)
    return {f"{piece.name}.{part}": data for part, data in packed.tensors().items()}


def _quantized(checkpoint: Checkpoint, piece: Piece, recipe: Recipe) -> Packed:
    from mopeq_hub.kernels.on_gpu import device

    assert piece.matrix is not None
    weight = piece.matrix.read(checkpoint)
    try:
        search = recipe.quantizer != "rtn"
        return quantize(weight, piece.bits, recipe.group_size, recipe.symmetric, search, gpu=device())
    except MopeqError as error:
        raise MopeqError(f"{piece.source} holds {error.what}", error.hint) from None


def unquantized(checkpoint: Checkpoint, matrix: Matrix) -> np.ndarray:
    """The values that are written of a matrix that is not quantized."""
    weight = matrix.read(checkpoint)
    return weight.values if checkpoint.scale_of(matrix.source) is None else weight.bfloat16()


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


def _planned(checkpoint: Checkpoint, matrix: Matrix, bits: int, group_size: int) -> Piece:
    info = checkpoint.tensors[matrix.source]
    nbytes = info.nbytes * matrix.size // info.size
    if bits == 16:
        whole = TensorPlan(f"{matrix.name}.weight", kept_dtype(checkpoint, matrix.source), matrix.shape)
        return Piece(matrix.source, matrix.name, matrix, None, bits, (whole,), nbytes)
    check_divides(matrix, group_size)
    rows, columns = matrix.shape
    groups = columns // group_size
    packed = (
        TensorPlan(f"{matrix.name}.qweight", "I32", (columns * bits // 32, rows)),
        TensorPlan(f"{matrix.name}.qzeros", "I32", (groups, rows * bits // 32)),
        TensorPlan(f"{matrix.name}.scales", "F16", (groups, rows)),
    )
    assert sum(plan.nbytes for plan in packed) == packed_bytes(matrix.shape, bits, group_size)
    return Piece(matrix.source, matrix.name, matrix, None, bits, packed, nbytes)
