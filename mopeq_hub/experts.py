"""Who is who in a checkpoint: which slice of which tensor is which expert's projection, and what everything else is."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from mopeq_hub import mxfp4
from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.families.base import ExpertsModule, Family
from mopeq_hub.families.routing import Routing
from mopeq_hub.kept import Kept
from mopeq_hub.kernels.weight import ROWS, Weight

PACK_MULTIPLE = 32
"""Rows and columns come in multiples of this in auto-round's layout: 32 values fill whole 32-bit words at every
width."""


class Expert(NamedTuple):
    """One feed-forward network among those a router chooses from: layer and number within it, both from 0."""

    layer: int
    index: int  # type: ignore[assignment]  # Not a tuple's method of that name.


class Matrix(NamedTuple):
    """One weight [out, in] that may be quantized; a slice of one tensor of the checkpoint.

    name: its module at load time. source: the tensor's name in the file. index: along the tensor's first axis, if it is
    fused.
    transposed: the file holds it as [in, out]. rows: which output rows of the slice are this projection's, from, to
    and in steps of.
    expert, projection: set for routed experts, None for every other linear layer.
    """

    name: str
    source: str
    shape: tuple[int, int]
    index: int | None = None  # type: ignore[assignment]
    transposed: bool = False
    rows: tuple[int, int, int] | None = None
    expert: Expert | None = None
    projection: str | None = None

    @property
    def size(self) -> int:
        """How many weights it has."""
        return self.shape[0] * self.shape[1]

    def read(self, checkpoint: Checkpoint) -> Weight:
        """The weight [out, in] as a view of the mapped file, or what MXFP4 stands for."""
        if checkpoint.tensors[self.source].dtype == mxfp4.DTYPE:
            assert self.index is not None
            return Weight(self._slice(checkpoint.unpacked(self.source, self.index), 1))
        values = checkpoint.array(self.source)
        values = self._slice(values if self.index is None else values[self.index], 1)
        if checkpoint.scale_of(self.source) is None:
            return Weight(values)
        return Weight(values, np.ascontiguousarray(self._slice(checkpoint.factors(self.source, self.index), ROWS)))

    def _slice(self, matrix: np.ndarray, step: int) -> np.ndarray:
        """This weight's part of a matrix in the file that has a number for each `step` rows and columns."""
        matrix = matrix.T if self.transposed else matrix
        return matrix if self.rows is None else matrix[self.rows[0] // step : self.rows[1] // step : self.rows[2]]


@dataclass(frozen=True)
class Alike:
    """Matrices that take the same bytes at the same width: of one `shape`, from one `file`, where all are stored as
    `dtype`; routed experts' or not. What is summed over a hundred thousand matrices is summed over a few of these.
    """

    file: str
    dtype: str
    shape: tuple[int, int]
    matrices: tuple[Matrix, ...]

    @cached_property
    def places(self) -> tuple[tuple[Expert, str], ...]:
        """Which expert's projection each of them is; none where they are no experts'."""
        return tuple((matrix.expert, str(matrix.projection)) for matrix in self.matrices if matrix.expert)

    @property
    def size(self) -> int:
        """How many weights one of them has."""
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Stack:
    """A list of layers by its live name, and the number of its first; a decoder's layers follow an encoder's."""

    name: str
    first: int

    def number_of(self, name: str) -> int | None:
        """The layer that a module or tensor is in, by its live name; None where it is in none of these."""
        number = name[len(self.name) + 1 :].partition(".")[0]
        return self.first + int(number) if name.startswith(f"{self.name}.") and number.isdecimal() else None


@dataclass(frozen=True)
class Layout:
    """Everything a checkpoint holds, in the live model's words. Made by `mopeq_hub.placing`.

    matrices: routed experts' projections and other linear layers of the text model, in the order of the files.
    kept: by live name, tensors written as they are. modules: the live modules that hold routed experts, layer by layer.
    stacks: of the text model's layers, an encoder's first. routing: what chooses and feeds the experts.
    aside: those that hold experts of other parts, which are published as they are, but each by itself.
    speaker, beside: of a model of several parts, the name of the one that answers in text, and those of the others.
    """

    family: Family
    task: str
    auto_class: str
    matrices: tuple[Matrix, ...]
    kept: dict[str, Kept]
    ignored: tuple[str, ...]
    modules: tuple[ExpertsModule, ...]
    stacks: tuple[Stack, ...]
    layer_count: int
    experts_per_token: int
    routing: Routing
    aside: tuple[ExpertsModule, ...] = ()
    speaker: str = ""
    beside: tuple[str, ...] = ()

    @cached_property
    def experts(self) -> dict[Expert, list[Matrix]]:
        """Each routed expert's projections, experts in order."""
        found: dict[Expert, list[Matrix]] = {}
        for matrix in self.matrices:
            if matrix.expert is not None:
                found.setdefault(matrix.expert, []).append(matrix)
        return dict(sorted(found.items()))

    @cached_property
    def projections(self) -> tuple[tuple[Expert, str], ...]:
        """Those of each routed expert, experts in order."""
        return tuple((expert, str(part.projection)) for expert, parts in self.experts.items() for part in parts)

    @cached_property
    def routed(self) -> tuple[Matrix, ...]:
        """The projections of all routed experts."""
        return tuple(matrix for matrix in self.matrices if matrix.expert is not None)

    @cached_property
    def routed_size(self) -> int:
        """How many weights all routed experts have."""
        return sum(matrix.size for matrix in self.routed)

    @cached_property
    def rest(self) -> tuple[Matrix, ...]:
        """The linear layers of the text model that belong to no routed expert."""
        return tuple(matrix for matrix in self.matrices if matrix.expert is None)

    @cached_property
    def modules_of(self) -> dict[int, tuple[ExpertsModule, ...]]:
        """The experts modules of each layer that has any; most have one."""
        found: dict[int, tuple[ExpertsModule, ...]] = {}
        for module in self.modules:
            found[module.layer] = (*found.get(module.layer, ()), module)
        return found

    def module_of(self, expert: Expert) -> ExpertsModule:
        """The module that holds an expert."""
        return next(module for module in self.modules_of[expert.layer] if expert.index < module.first + module.count)

    @cached_property
    def source_of(self) -> dict[str, str]:
        """The file's name of each live parameter outside the experts that is there as it is."""
        linears = {f"{matrix.name}.weight": matrix.source for matrix in self.rest if matrix.rows is None}
        return {**linears, **{name: kept.plain for name, kept in self.kept.items() if kept.plain}}

    @cached_property
    def never_quantized(self) -> list[str]:
        """Modules within the decoder layers whose weight is a matrix and is kept: auto-round's loader may take some of
        them, such as routers, for linear layers like others."""
        weights = (kept for name, kept in self.kept.items() if name.endswith(".weight") and len(kept.shape) == 2)
        inside = (kept.name for kept in weights if layer_number(self.stacks, kept.name) is not None)
        return [name.removesuffix(".weight") for name in inside]

    @cached_property
    def answering(self) -> dict[str, Kept]:
        """What is kept of the part that answers in text, which is all of most models."""
        return {name: kept for name, kept in self.kept.items() if name.partition(".")[0] not in self.beside}

    @property
    def blocks(self) -> str:
        """The names of the lists of layers, with commas between them."""
        return ",".join(stack.name for stack in self.stacks)

    @cached_property
    def layer_of(self) -> dict[str, int]:
        """The layer of each tensor of the file that belongs to one."""
        of = {matrix.source: matrix.name for matrix in self.rest}
        of |= {source: name for name, kept in self.kept.items() for source in kept.sources}
        found = {source: layer_number(self.stacks, name) for source, name in of.items()}
        found |= {matrix.source: matrix.expert.layer for matrix in self.routed if matrix.expert}
        return {source: number for source, number in found.items() if number is not None}


def alike(checkpoint: Checkpoint, matrices: Iterable[Matrix]) -> tuple[Alike, ...]:
    """All matrices, those together that are alike, in the order in which the first of each are."""
    found: dict[tuple[str, str, tuple[int, int], bool], list[Matrix]] = {}
    for matrix in matrices:
        info = checkpoint.tensors[matrix.source]
        found.setdefault((info.file, info.dtype, matrix.shape, matrix.expert is not None), []).append(matrix)
    return tuple(Alike(file, dtype, shape, tuple(group)) for (file, dtype, shape, _), group in found.items())


def layer_number(stacks: Iterable[Stack], name: str) -> int | None:
    """The layer that a module or tensor is in, None where it is in none."""
    return next((number for stack in stacks if (number := stack.number_of(name)) is not None), None)
