"""Who is who in a checkpoint: which slice of which tensor is which expert's projection, and what everything else is."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mopeq_hub.checkpoint import Checkpoint, TensorInfo
from mopeq_hub.errors import MopeqError
from mopeq_hub.families.base import Family
from mopeq_hub.families.live import LiveModel

if TYPE_CHECKING:
    import torch

PACK_MULTIPLE = 32
"""Rows and columns come in multiples of this in auto-round's layout: 32 values fill whole 32-bit words at every width."""


@dataclass(frozen=True, order=True)
class Expert:
    """One feed-forward network among those a router chooses from: decoder layer and number within it, both from 0."""

    layer: int
    index: int


@dataclass(frozen=True)
class Matrix:
    """One weight [out, in] that may be quantized; a slice of one tensor of the checkpoint.

    name: its module at load time. source: the tensor's name in the file. index: along the tensor's first axis, if it is fused.
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

    def read(self, checkpoint: Checkpoint) -> "torch.Tensor":
        """The weight [out, in] as a view of the mapped file, in the file's dtype."""
        tensor = checkpoint.tensor(self.source)
        if self.index is not None:
            tensor = tensor[self.index]
        if self.transposed:
            tensor = tensor.T
        return tensor if self.rows is None else tensor[slice(*self.rows)]


@dataclass(frozen=True)
class Layout:
    """Everything a checkpoint holds, in the live model's words. Made by `read_layout`.

    matrices: routed experts' projections and other linear layers of the text model, in the order of the files.
    kept: live name by source name, of tensors written as they are.
    experts_modules: live name of the experts module by layer. blocks: live name of the list of decoder layers.
    """

    family: Family
    task: str
    auto_class: str
    matrices: tuple[Matrix, ...]
    kept: dict[str, str]
    ignored: tuple[str, ...]
    experts_modules: dict[int, str]
    blocks: str
    layer_count: int

    @cached_property
    def experts(self) -> dict[Expert, list[Matrix]]:
        """Each routed expert's projections, experts in order."""
        found: dict[Expert, list[Matrix]] = {}
        for matrix in self.matrices:
            if matrix.expert is not None:
                found.setdefault(matrix.expert, []).append(matrix)
        return dict(sorted(found.items()))

    @cached_property
    def rest(self) -> tuple[Matrix, ...]:
        """The linear layers of the text model that belong to no routed expert."""
        return tuple(matrix for matrix in self.matrices if matrix.expert is None)

    @cached_property
    def layer_of(self) -> dict[str, int]:
        """The decoder layer of each tensor of the file that belongs to one."""
        live_names = {**self.kept, **{matrix.source: matrix.name for matrix in self.matrices}}
        inside = re.compile(rf"{re.escape(self.blocks)}\.(\d+)\.")
        return {source: int(found[1]) for source, name in live_names.items() if (found := inside.match(name))}


def read_layout(checkpoint: Checkpoint, family: Family, config_path: Path, where: str) -> Layout:
    """Place every tensor of the checkpoint. Raises MopeqError where file, config and family do not fit together."""
    from torch import nn

    live = LiveModel.build(config_path, where)
    modules = dict(live.model.named_modules())
    experts_names = [name for name, module in modules.items() if family.is_experts(module)]
    if not experts_names:
        raise MopeqError(f"{where} has no experts module as {family.model_type} has them", "this variant is not supported yet")
    blocks = experts_names[0][: re.search(r"\.\d+\.", experts_names[0]).start()]  # type: ignore[union-attr]
    linears = {
        name
        for name, module in modules.items()
        if type(module) is nn.Linear and name.startswith(blocks + ".")
    }
    matrices: list[Matrix] = []
    kept: dict[str, str] = {}
    ignored: list[str] = []
    for info in checkpoint.in_file_order():
        live_name, pattern, patterns = live.name_of(info.name)
        module_name, _, parameter = live_name.rpartition(".")
        if module_name in experts_names and any(part.name == parameter for part in family.fused):
            projection = family.projection_of(parameter, pattern, patterns)
            experts_in = _one_expert if projection else _fused_experts
            matrices += experts_in(info, live, family, live_name, projection, pattern, where)
        elif live_name not in live.shapes:
            ignored.append(info.name)
        elif pattern is not None:
            raise MopeqError(f"{info.name} of {where} is stored in a form that is not supported yet", "report the model's name")
        else:
            _check_shape(info, info.shape, live.shapes[live_name], where)
            if module_name in linears and parameter == "weight":
                rows, columns = info.shape
                matrices.append(Matrix(module_name, info.name, (rows, columns)))
            else:
                kept[info.name] = live_name
    layout = Layout(
        family=family,
        task=live.task,
        auto_class=live.auto_class,
        matrices=tuple(matrices),
        kept=kept,
        ignored=tuple(ignored),
        experts_modules={_layer_number(name): name for name in experts_names},
        blocks=blocks,
        layer_count=len(modules[blocks]),  # type: ignore[arg-type]
    )
    _check_complete(layout, live, where)
    return layout


def _one_expert(
    info: TensorInfo, live: LiveModel, family: Family, live_name: str, projection: str, pattern: str, where: str
) -> Iterator[Matrix]:
    """The projection that a file with one tensor an expert stores under this name."""
    experts, _, parameter = live_name.rpartition(".")
    count, fused_rows, columns = live.shapes[live_name]
    shape = (fused_rows // len(family.stacked(parameter)), columns)
    _check_shape(info, info.shape, shape, where)
    index = family.expert_index(info.name, pattern)
    if index >= count:
        raise MopeqError(f"{info.name} of {where} is expert {index}, but the config counts {count}", "use the config of this checkpoint")
    expert = Expert(_layer_number(experts), index)
    yield Matrix(family.matrix_name(experts, index, projection), info.name, shape, expert=expert, projection=projection)


def _fused_experts(
    info: TensorInfo, live: LiveModel, family: Family, live_name: str, projection: None, pattern: str | None, where: str
) -> Iterator[Matrix]:
    """Every expert's projections in a file that stores a layer's experts as one 3-D tensor.

    Orientation is decided as transformers decides it: by shape, and as it lies where both orientations fit.
    """
    experts, _, parameter = live_name.rpartition(".")
    count, fused_rows, columns = live.shapes[live_name]
    transposed = info.shape != live.shapes[live_name]
    if transposed:
        _check_shape(info, info.shape, (count, columns, fused_rows), where)
    stacked = family.stacked(parameter)
    rows = fused_rows // len(stacked)
    for index in range(count):
        expert = Expert(_layer_number(experts), index)
        for position, name in enumerate(stacked):
            yield Matrix(
                family.matrix_name(experts, index, name),
                info.name,
                (rows, columns),
                index=index,
                transposed=transposed,
                rows=(position * rows, (position + 1) * rows),
                expert=expert,
                projection=name,
            )


def _layer_number(experts: str) -> int:
    """The decoder layer in the name of an experts module: the first number in it."""
    return int(re.search(r"\.(\d+)\.", experts)[1])  # type: ignore[index]


def _check_shape(info: TensorInfo, found: tuple[int, ...], expected: tuple[int, ...], where: str) -> None:
    if tuple(found) != tuple(expected):
        raise MopeqError(
            f"{info.name} of {where} has the shape {list(found)} where its config asks for {list(expected)}",
            "use the config.json that belongs to these weights",
        )


def _check_complete(layout: Layout, live: LiveModel, where: str) -> None:
    """Every parameter of the live model has its source, but for those tied to another."""
    present = set(layout.kept.values()) | {f"{matrix.name}.weight" for matrix in layout.rest}
    experts = {layout.experts_modules[expert.layer]: 0 for expert in layout.experts}
    for expert in layout.experts:
        experts[layout.experts_modules[expert.layer]] += len(layout.experts[expert])
    parameters = {name for name, _ in live.model.named_parameters()} | {name for name, _ in live.model.named_buffers()}
    fused = {f"{module}.{part.name}" for module in layout.experts_modules.values() for part in layout.family.fused}
    missing = sorted(set(live.shapes) & parameters - present - fused - live.tied)
    for module in layout.experts_modules.values():
        count = live.shapes[f"{module}.{layout.family.fused[0].name}"][0]
        expected = count * sum(len(part.projections) for part in layout.family.fused)
        if experts.get(module) != expected:
            missing.append(f"{expected - experts.get(module, 0)} matrices of {module}")
    if missing:
        raise MopeqError(
            f"{where} lacks {missing[0]}" + (f" and {len(missing) - 1} more tensors" if len(missing) > 1 else ""),
            "finish the download, or use the config.json that belongs to these weights",
        )
