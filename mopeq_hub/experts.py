"""Who is who in a checkpoint: which slice of which tensor is which expert's projection, and what everything else is."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mopeq_hub.checkpoint import Checkpoint, TensorInfo
from mopeq_hub.errors import MopeqError
from mopeq_hub.families.base import Family
from mopeq_hub.families.live import LiveModel
from mopeq_hub.families.routing import Routing, find_routing
from mopeq_hub.kernels.weight import ROWS, Weight

PACK_MULTIPLE = 32
"""Rows and columns come in multiples of this in auto-round's layout: 32 values fill whole 32-bit words at every
width."""


_FLOAT8 = "F8_E4M3"
QUANTIZABLE = ("BF16", "F16", "F32", _FLOAT8)
"""What weights that are to be quantized may be stored as; float8 with a factor for each block."""


@dataclass(frozen=True, order=True)
class Expert:
    """One feed-forward network among those a router chooses from: layer and number within it, both from 0."""

    layer: int
    index: int


@dataclass(frozen=True)
class Matrix:
    """One weight [out, in] that may be quantized; a slice of one tensor of the checkpoint.

    name: its module at load time. source: the tensor's name in the file. index: along the tensor's first axis, if it is
    fused.
    transposed: the file holds it as [in, out]. rows: which output rows of the slice are this projection's.
    expert, projection: set for routed experts, None for every other linear layer.
    """

    name: str
    source: str
    shape: tuple[int, int]
    index: int | None = None
    transposed: bool = False
    rows: tuple[int, int] | None = None
    expert: Expert | None = None
    projection: str | None = None

    @property
    def size(self) -> int:
        """How many weights it has."""
        return self.shape[0] * self.shape[1]

    def read(self, checkpoint: Checkpoint) -> Weight:
        """The weight [out, in] as a view of the mapped file."""
        values = checkpoint.array(self.source)
        values = self._slice(values if self.index is None else values[self.index], 1)
        if checkpoint.scale_of(self.source) is None:
            return Weight(values)
        return Weight(values, np.ascontiguousarray(self._slice(checkpoint.factors(self.source, self.index), ROWS)))

    def _slice(self, matrix: np.ndarray, step: int) -> np.ndarray:
        """This weight's part of a matrix in the file that has a number for each `step` rows and columns."""
        matrix = matrix.T if self.transposed else matrix
        return matrix if self.rows is None else matrix[self.rows[0] // step : self.rows[1] // step]


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
    """Everything a checkpoint holds, in the live model's words. Made by `read_layout`.

    matrices: routed experts' projections and other linear layers of the text model, in the order of the files.
    kept: live name by source name, of tensors written as they are.
    experts_modules: live name of the experts module by layer. stacks: of the text model's layers, an encoder's first.
    routing: what chooses and feeds the experts. routers: routers that are linear layers, which are never quantized.
    """

    family: Family
    task: str
    auto_class: str
    matrices: tuple[Matrix, ...]
    kept: dict[str, str]
    ignored: tuple[str, ...]
    experts_modules: dict[int, str]
    stacks: tuple[Stack, ...]
    layer_count: int
    experts_per_token: int
    routing: Routing
    routers: tuple[str, ...]

    @cached_property
    def experts(self) -> dict[Expert, list[Matrix]]:
        """Each routed expert's projections, experts in order."""
        found: dict[Expert, list[Matrix]] = {}
        for matrix in self.matrices:
            if matrix.expert is not None:
                found.setdefault(matrix.expert, []).append(matrix)
        return dict(sorted(found.items()))

    @cached_property
    def routed(self) -> tuple[Matrix, ...]:
        """The projections of all routed experts."""
        return tuple(matrix for matrix in self.matrices if matrix.expert is not None)

    @cached_property
    def rest(self) -> tuple[Matrix, ...]:
        """The linear layers of the text model that belong to no routed expert."""
        return tuple(matrix for matrix in self.matrices if matrix.expert is None)

    @cached_property
    def source_of(self) -> dict[str, str]:
        """The file's name of each live parameter outside the experts."""
        linears = {f"{matrix.name}.weight": matrix.source for matrix in self.rest}
        return {**linears, **{live: source for source, live in self.kept.items()}}

    @cached_property
    def layer_of(self) -> dict[str, int]:
        """The decoder layer of each tensor of the file that belongs to one."""
        live_names = {**self.kept, **{matrix.source: matrix.name for matrix in self.matrices}}
        found = {source: layer_number(self.stacks, name) for source, name in live_names.items()}
        return {source: number for source, number in found.items() if number is not None}

    @property
    def blocks(self) -> str:
        """The names of the lists of layers, with commas between them."""
        return ",".join(stack.name for stack in self.stacks)


def layer_number(stacks: Iterable[Stack], name: str) -> int | None:
    """The layer that a module or tensor is in, None where it is in none."""
    return next((number for stack in stacks if (number := stack.number_of(name)) is not None), None)


def read_layout(checkpoint: Checkpoint, family: Family, config_path: Path, where: str) -> Layout:
    """Place every tensor of the checkpoint. Raises MopeqError where file, config and family do not fit together."""
    placer = _Placer(family, LiveModel.build(config_path, family, where), where)
    scales = {checkpoint.scale_of(name) for name in checkpoint.tensors}
    for info in checkpoint.in_file_order():
        if info.name in scales:
            continue
        if info.dtype == _FLOAT8:
            _check_float8(checkpoint, info, where)
        placer.place(info)
    return placer.layout()


def _check_float8(checkpoint: Checkpoint, info: TensorInfo, where: str) -> None:
    """Raises MopeqError where a float8 tensor is no matrix, or has no factor for each block."""
    scale = checkpoint.scale_of(info.name)
    if scale is None or len(info.shape) not in (2, 3):
        raise MopeqError(f"{info.name} of {where} is float8 without a scale for each block", "use a source in 16 bits")
    expected = (*info.shape[:-2], *(-(-n // b) for n, b in zip(info.shape[-2:], checkpoint.block, strict=True)))
    if checkpoint.tensors[scale].shape != expected:
        raise MopeqError(
            f"{scale} of {where} has the shape {list(checkpoint.tensors[scale].shape)} where blocks of "
            f"{checkpoint.block[0]} x {checkpoint.block[1]} need {list(expected)}",
            "use the config.json that belongs to these weights",
        )


class _Placer:
    """Sorts the tensors of a file into experts' projections, other linear layers, and what is kept."""

    def __init__(self, family: Family, live: LiveModel, where: str) -> None:
        from torch import nn

        self._family, self._live, self._where = family, live, where
        self._modules = dict(live.model.named_modules())
        self._experts = [name for name, module in self._modules.items() if family.is_experts(module)]
        if not self._experts:
            raise MopeqError(
                f"{where} has no experts module as {family.model_type} has them", "this variant is not supported yet"
            )
        self._stacks, self._layer_count = self._found_stacks()
        self._experts_modules = {self._layer(name): name for name in self._experts}
        self._routing = find_routing(
            live.model, family, self._experts_modules, live.model.config.get_text_config(), live.normalized.num_experts
        )
        linears = {
            name
            for name, module in self._modules.items()
            if type(module) is nn.Linear and layer_number(self._stacks, name) is not None
        }
        routers = {name.rpartition(".")[0] for name in self._routing.routers.values()}
        self._routers = tuple(sorted(routers & linears))
        # Of a family whose experts are linear layers in the live model: what each is.
        self._own = {} if family.fused else self._own_linears()
        self._linears = linears - routers - self._own.keys()
        self._matrices: list[Matrix] = []
        self._kept: dict[str, str] = {}
        self._ignored: list[str] = []

    def place(self, info: TensorInfo) -> None:
        live_name, pattern, patterns = self._live.name_of(info.name)
        module, _, parameter = live_name.rpartition(".")
        if module in self._own and parameter == "weight":
            expert, part = self._own[module]
            rows, columns = self._live.shapes[live_name]
            self._check_dtype(info)
            self._check_shape(info, (rows, columns))
            self._matrices.append(Matrix(module, info.name, (rows, columns), expert=expert, projection=part))
        elif module in self._experts and any(part.name == parameter for part in self._family.fused):
            self._check_dtype(info)
            projection = self._family.projection_of(parameter, pattern, patterns)
            if projection is None or pattern is None:
                self._matrices += self._fused_experts(info, module, parameter)
            else:
                self._matrices.append(self._one_expert(info, module, parameter, projection, pattern))
        elif live_name not in self._live.shapes:
            self._ignored.append(info.name)
        elif pattern is not None:
            self._matrices += self._cut(info, self._live.parts_of(live_name, pattern))
        else:
            self._check_shape(info, self._live.shapes[live_name])
            if module in self._linears and parameter == "weight":
                self._check_dtype(info)
                self._matrices.append(Matrix(module, info.name, (info.shape[0], info.shape[1])))
            else:
                self._kept[info.name] = live_name

    def _cut(self, info: TensorInfo, names: list[str]) -> Iterator[Matrix]:
        """The linear layers that one tensor of the file holds one below the other."""
        parts = [name.removesuffix(".weight") for name in names]
        if not parts or not {*parts} <= self._linears:
            raise MopeqError(
                f"{info.name} of {self._where} is stored in a form that is not supported yet", "report the model's name"
            )
        self._check_dtype(info)
        shapes = [self._live.shapes[name] for name in names]
        self._check_shape(info, (sum(shape[0] for shape in shapes), shapes[0][1]))
        start = 0
        for part, (rows, columns) in zip(parts, shapes, strict=True):
            yield Matrix(part, info.name, (rows, columns), rows=(start, start + rows))
            start += rows

    def layout(self) -> Layout:
        """What was placed. Raises MopeqError where the live model needs something that was not in the file."""
        normalized, per_token = self._live.normalized, self._family.experts_per_token
        layout = Layout(
            family=self._family,
            task=self._live.task,
            auto_class=self._live.auto_class,
            matrices=tuple(self._matrices),
            kept=self._kept,
            ignored=tuple(self._ignored),
            experts_modules=self._experts_modules,
            stacks=self._stacks,
            layer_count=self._layer_count,
            experts_per_token=per_token if isinstance(per_token, int) else normalized.experts_per_token,
            routing=self._routing,
            routers=self._routers,
        )
        missing = self._missing_experts(layout) + self._missing_tensors(layout)
        if missing:
            raise MopeqError(
                f"{self._where} lacks {missing[0]}" + (f" and {len(missing) - 1} others" if len(missing) > 1 else ""),
                "finish the download, or use the config.json that belongs to these weights",
            )
        return layout

    def _one_expert(self, info: TensorInfo, module: str, parameter: str, projection: str, pattern: str) -> Matrix:
        """The projection that a file with one tensor an expert stores under this name."""
        _, fused_rows, columns = self._live.shapes[f"{module}.{parameter}"]
        count = self._live.normalized.num_experts
        shape = (fused_rows // len(self._family.stacked(parameter)), columns)
        self._check_shape(info, shape)
        index = self._family.expert_index(info.name, pattern)
        if index >= count:
            raise MopeqError(
                f"{info.name} of {self._where} is expert {index}, but the config counts {count}",
                "use the config.json that belongs to these weights",
            )
        name = self._family.matrix_name(module, index, projection)
        return Matrix(name, info.name, shape, expert=Expert(self._layer(module), index), projection=projection)

    def _fused_experts(self, info: TensorInfo, module: str, parameter: str) -> Iterator[Matrix]:
        """Every expert's projections in a file that stores a layer's experts as one 3-D tensor.

        Orientation is decided as transformers decides it: by shape, and as it lies where both orientations fit.
        """
        count, fused_rows, columns = self._live.shapes[f"{module}.{parameter}"]
        transposed = info.shape != (count, fused_rows, columns)
        if transposed:
            self._check_shape(info, (count, columns, fused_rows))
        stacked = self._family.stacked(parameter)
        rows = fused_rows // len(stacked)
        for index in range(count):
            for position, projection in enumerate(stacked):
                yield Matrix(
                    self._family.matrix_name(module, index, projection),
                    info.name,
                    (rows, columns),
                    index=index,
                    transposed=transposed,
                    rows=(position * rows, (position + 1) * rows),
                    expert=Expert(self._layer(module), index),
                    projection=projection,
                )

    def _found_stacks(self) -> tuple[tuple[Stack, ...], int]:
        """The lists of layers that hold experts, in the model's order, and how many layers they have together."""
        stacks, count = [], 0
        for name in dict.fromkeys(re.split(r"\.\d+\.", experts)[0] for experts in self._experts):
            stacks.append(Stack(name, count))
            count += len(list(self._modules[name].children()))
        return tuple(stacks), count

    def _own_linears(self) -> dict[str, tuple[Expert, str]]:
        """By the name of its linear layer, each expert's projection."""
        return {
            self._family.matrix_name(module, index, projection): (Expert(self._layer(module), index), projection)
            for module in self._experts
            for index in range(self._live.normalized.num_experts)
            for projection, _ in self._family.modules
        }

    def _layer(self, module: str) -> int:
        number = layer_number(self._stacks, module)
        assert number is not None
        return number

    def _check_dtype(self, info: TensorInfo) -> None:
        if info.dtype not in QUANTIZABLE:
            raise MopeqError(f"{info.name} of {self._where} is stored as {info.dtype}", "use a source in 16 or 32 bits")

    def _check_shape(self, info: TensorInfo, expected: tuple[int, ...]) -> None:
        if info.shape != expected:
            raise MopeqError(
                f"{info.name} of {self._where} has the shape {list(info.shape)} "
                f"where its config asks for {list(expected)}",
                "use the config.json that belongs to these weights",
            )

    def _missing_experts(self, layout: Layout) -> list[str]:
        missing = []
        projections = len(self._family.modules)
        for layer in layout.experts_modules:
            for expert in (Expert(layer, index) for index in range(self._live.normalized.num_experts)):
                if len(layout.experts.get(expert, ())) != projections:
                    missing.append(f"projections of expert {expert.index} of layer {layer}")
        return missing

    def _missing_tensors(self, layout: Layout) -> list[str]:
        """Tensors of the live model outside the experts that the file does not hold, but for those tied to another."""
        present = set(layout.kept.values()) | {f"{matrix.name}.weight" for matrix in layout.rest}
        present |= {f"{name}.weight" for name in self._own}
        fused = {f"{module}.{part.name}" for module in self._experts for part in self._family.fused}
        return sorted(set(self._live.shapes) - present - fused - self._live.tied)
