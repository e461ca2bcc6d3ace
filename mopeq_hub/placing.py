"""Placing: every tensor of a checkpoint finds its part in the live model, by the way that transformers itself takes."""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from mopeq_hub import mxfp4
from mopeq_hub.checkpoint import Checkpoint, TensorInfo
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Expert, Layout, Matrix, Stack, layer_number
from mopeq_hub.families.base import ExpertsModule, Family, Form, Fused
from mopeq_hub.families.live import LiveModel
from mopeq_hub.families.routing import find_routing
from mopeq_hub.kept import Conversion, Kept

_FLOAT8 = "F8_E4M3"
QUANTIZABLE = ("BF16", "F16", "F32", _FLOAT8, mxfp4.DTYPE)
"""What weights that are to be quantized may be stored as; float8 with a factor for each block."""


def read_layout(checkpoint: Checkpoint, family: Family, config_path: Path, where: str) -> Layout:
    """Place every tensor of the checkpoint. Raises MopeqError where file, config and family do not fit together."""
    placer = _Placer(checkpoint, family, LiveModel.build(config_path, where), where)
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

    def __init__(self, checkpoint: Checkpoint, family: Family, live: LiveModel, where: str) -> None:
        from torch import nn

        self._checkpoint, self._family, self._live, self._where = checkpoint, family, live, where
        modules = dict(live.model.named_modules())
        self._modules, self._aside = self._experts_modules(modules)
        self._fused = {
            f"{module.name}.{part.name}": (module, part)
            for module in (*self._modules, *self._aside)
            for part in module.form.fused
        }
        self._biases = {f"{name}_bias": held for name, held in self._fused.items() if held[0].form.biased}
        self._own = {
            module.matrix_name(index, projection): (Expert(module.layer, index), projection)
            for module in self._modules
            if not module.form.fused
            for index in range(module.count)
            for projection in module.form.projections
        }
        self._linears = {
            name
            for name, module in modules.items()
            if type(module) is nn.Linear and layer_number(self._stacks, name) is not None
        }
        self._matrices: list[Matrix] = []
        self._kept: dict[str, Kept] = {}
        self._ignored: list[str] = []
        self._converted: dict[str, tuple[Any, list[tuple[str, str]]]] = {}
        self._alike: dict[str, tuple[str, str | None, Any]] = {}
        self._in_layer = {
            layer: [*modules] for layer, modules in groupby((*self._modules, *self._aside), lambda each: each.layer)
        }

    def _experts_modules(self, modules: dict[str, Any]) -> tuple[list[ExpertsModule], list[ExpertsModule]]:
        """The live modules of the text model's routed experts, in the order of the layers, and those of other parts
        that auto-round's loader takes apart with them, numbered down from -1 as if each were a layer.

        Raises MopeqError where there are none, or some in several lists of layers, an encoder's and a decoder's aside.
        """
        forms = {name: form for name, module in modules.items() if (form := self._family.form(module))}
        if not forms:
            raise MopeqError(
                f"{self._where} (text model {self._family.model_type}) has no experts that auto-round's loader takes "
                f"apart into single ones",
                "this kind of model is not supported",
            )
        lists, others = _lists(forms), dict[str, Form]()
        if len(lists) > 1 and not getattr(self._live.model.config, "is_encoder_decoder", False):
            text = self._text_model(modules)
            others = {name: form for name, form in forms.items() if not name.startswith(text)}
            forms = {name: form for name, form in forms.items() if name not in others}
            if len(_lists(forms)) != 1:
                raise MopeqError(
                    f"{self._where} has experts in two parts, {lists[0]} and {lists[1]}",
                    "this kind of model is not supported",
                )
            lists = _lists(forms)
        lengths = [len(list(modules[name].children())) for name in lists]
        self._stacks = tuple(Stack(name, sum(lengths[:place])) for place, name in enumerate(lists))
        self._layer_count = sum(lengths)
        found: list[ExpertsModule] = []
        first: dict[int, int] = {}
        for name, form in forms.items():
            layer = layer_number(self._stacks, name)
            assert layer is not None
            count = self._count(name, form, modules[name])
            found.append(ExpertsModule(name, layer, first.get(layer, 0), count, form))
            first[layer] = first.get(layer, 0) + count
        return found, [
            ExpertsModule(name, -number, 0, self._count(name, form, modules[name]), form)
            for number, (name, form) in enumerate(others.items(), 1)
        ]

    def _text_model(self, modules: dict[str, Any]) -> str:
        """What the live names of everything in the text model begin with."""
        decoder = self._live.model.get_decoder()
        return next((f"{name}." for name, module in modules.items() if name and module is decoder), "")

    def _count(self, name: str, form: Form, module: Any) -> int:
        """How many experts a module holds."""
        return self._live.shapes[f"{name}.{form.fused[-1].name}"][0] if form.fused else len(list(module.children()))

    def place(self, info: TensorInfo) -> None:
        live_name, pattern, converter = self._name_of(info.name)
        if live_name in self._fused:
            self._check_dtype(info)
            made = self._of_experts(info, *self._fused[live_name], pattern, converter)
            if self._fused[live_name][0].layer < 0:
                self._kept |= {kept.name: kept for kept in map(self._apart, made)}
            else:
                self._matrices += made
        elif live_name in self._biases and converter is None:
            self._place_biases(info, *self._biases[live_name])
        elif live_name not in self._live.shapes:
            self._ignored.append(info.name)
        elif converter is not None and pattern is not None:
            if not self._cut(info, live_name, pattern):
                self._converted.setdefault(live_name, (converter, []))[1].append((info.name, pattern))
        else:
            self._place_one(info, live_name)

    def _name_of(self, source: str) -> tuple[str, str | None, Any]:
        """As the live model's; of a layer's experts, stored one by one, only the first is asked for: what becomes of
        each is one and the same."""
        found = _NUMBERED.search(source)
        if found is None:
            return self._live.name_of(source)
        first = f"{source[: found.start(1)]}0{source[found.end(1) :]}"
        if first not in self._alike:
            self._alike[first] = self._live.name_of(first)
        return self._alike[first] if self._alike[first][0] in self._fused else self._live.name_of(source)

    def _place_one(self, info: TensorInfo, live_name: str) -> None:
        """A tensor that is a live parameter as it lies."""
        self._check_shape(info, self._live.shapes[live_name])
        module = live_name.removesuffix(".weight")
        if module in self._own:
            expert, projection = self._own[module]
            self._check_dtype(info)
            shape = (info.shape[0], info.shape[1])
            self._matrices.append(Matrix(module, info.name, shape, expert=expert, projection=projection))
        elif module in self._linears and not module.endswith(self._family.whole):
            self._check_dtype(info)
            self._matrices.append(Matrix(module, info.name, (info.shape[0], info.shape[1])))
        else:
            self._kept[live_name] = Kept(live_name, (info.name,), info.shape)

    def _cut(self, info: TensorInfo, live_name: str, pattern: str) -> bool:
        """Place the linear layers that one tensor of the file holds one below the other; False where it is anything
        else."""
        names = self._live.parts_of(live_name, pattern)
        parts = [name.removesuffix(".weight") for name in names]
        if not parts or not {*parts} <= self._linears:
            return False
        self._check_dtype(info)
        shapes = [self._live.shapes[name] for name in names]
        self._check_shape(info, (sum(shape[0] for shape in shapes), shapes[0][1]))
        start = 0
        for part, (rows, columns) in zip(parts, shapes, strict=True):
            self._matrices.append(Matrix(part, info.name, (rows, columns), rows=(start, start + rows, 1)))
            start += rows
        return True

    def _of_experts(
        self, info: TensorInfo, module: ExpertsModule, part: Fused, pattern: str | None, converter: Any
    ) -> Iterator[Matrix]:
        """The projections that a tensor of the file holds of what becomes the live parameter `part`.

        Raises MopeqError where transformers makes it in a way that is not known here.
        """
        kinds = self._live.kinds_of(converter)
        if pattern is not None and "*" in pattern and kinds[:1] in (["MergeModulelist"], [_ERNIE]):
            yield self._one_expert(info, module, part, pattern, converter)
        elif kinds in ([], ["Transpose"], ["Interleave"]):
            yield from self._stacked(info, module, part, kinds)
        elif kinds == ["Concatenate"] and converter.operations[0].dim == 1:
            projection = part.projections[list(converter.source_patterns).index(str(pattern))]
            yield from self._stacked(info, module, Fused(part.name, (projection,)), [])
        else:
            raise MopeqError(
                f"{info.name} of {self._where} is stored in a form that is not supported yet", "report the model's name"
            )

    def _apart(self, matrix: Matrix) -> Kept:
        """An expert's projection beside the text model, kept as it is under its own name.

        Raises MopeqError where the file holds several in one tensor.
        """
        if matrix.index is not None:
            raise MopeqError(
                f"{matrix.source} of {self._where} is stored in a form that is not supported yet",
                "report the model's name",
            )
        return Kept(f"{matrix.name}.weight", (matrix.source,), matrix.shape)

    def _one_expert(self, info: TensorInfo, module: ExpertsModule, part: Fused, pattern: str, converter: Any) -> Matrix:
        """The projection that a file with one tensor an expert stores under this name."""
        found = _NUMBERED.search(info.name)
        if found is None:
            raise MopeqError(
                f"{info.name} of {self._where} does not say which expert's it is", "report the model's name"
            )
        index, layer = int(found[1]), self._in_layer[module.layer]
        if index >= layer[-1].first + layer[-1].count:
            raise MopeqError(
                f"{info.name} of {self._where} is expert {index}, but the config counts "
                f"{layer[-1].first + layer[-1].count}",
                "use the config.json that belongs to these weights",
            )
        module = next(each for each in layer if index < each.first + each.count)
        projection = part.projections[list(converter.source_patterns).index(pattern)]
        shape = self._shape(module, part)
        self._check_shape(info, shape)
        expert = Expert(module.layer, index)
        return Matrix(module.matrix_name(index, projection), info.name, shape, expert=expert, projection=projection)

    def _stacked(self, info: TensorInfo, module: ExpertsModule, part: Fused, kinds: list[str]) -> Iterator[Matrix]:
        """Every expert's projections in a file that stores a layer's experts as one 3-D tensor.

        Orientation is decided as transformers decides it: by shape, and as it lies in the live module where both
        orientations fit.
        """
        rows, columns = self._shape(module, next(each for each in module.form.fused if each.name == part.name))
        together = rows * len(part.projections)
        ways = {True: (module.count, columns, together), False: (module.count, together, columns)}
        # As MXFP4 a weight lies in one way, whatever the live module's.
        transposed = module.form.transposed and info.dtype != mxfp4.DTYPE
        if info.shape != ways[transposed] and (kinds == ["Transpose"] or info.shape == ways[not transposed]):
            transposed = not transposed
        self._check_shape(info, ways[transposed])
        woven = kinds == ["Interleave"]
        for index in range(module.first, module.first + module.count):
            for position, projection in enumerate(part.projections):
                among = (
                    (position, together, len(part.projections))
                    if woven
                    else (position * rows, (position + 1) * rows, 1)
                )
                yield Matrix(
                    module.matrix_name(index, projection),
                    info.name,
                    (rows, columns),
                    index=index - module.first,
                    transposed=transposed,
                    rows=among,
                    expert=Expert(module.layer, index),
                    projection=projection,
                )

    def _shape(self, module: ExpertsModule, part: Fused) -> tuple[int, int]:
        """[out, in] of one projection of the live parameter."""
        _, *shape = self._live.shapes[f"{module.name}.{part.name}"]
        rows, columns = reversed(shape) if module.form.transposed else shape
        return rows // len(part.projections), columns

    def _place_biases(self, info: TensorInfo, module: ExpertsModule, part: Fused) -> None:
        """Every expert's biases, which auto-round's loader looks for one by one."""
        rows, _ = self._shape(module, part)
        self._check_shape(info, (module.count, rows * len(part.projections)))
        for index in range(module.first, module.first + module.count):
            for position, projection in enumerate(part.projections):
                name = f"{module.matrix_name(index, projection)}.bias"
                where = (index - module.first, position * rows, (position + 1) * rows)
                self._kept[name] = Kept(name, (info.name,), (rows,), part=where)

    def layout(self) -> Layout:
        """What was placed. Raises MopeqError where the live model needs something that was not in the file."""
        self._convert()
        live = self._live
        text = live.model.config.get_text_config()
        layout = Layout(
            family=self._family,
            task=live.task,
            auto_class=live.auto_class,
            matrices=tuple(self._matrices),
            kept=self._kept,
            ignored=tuple(self._ignored),
            modules=tuple(self._modules),
            aside=tuple(self._aside),
            stacks=self._stacks,
            layer_count=self._layer_count,
            experts_per_token=live.experts_per_token,
            routing=find_routing(live.model, self._family, self._modules, text),
            speaker=live.speaker,
            beside=live.beside,
        )
        missing = self._missing_experts(layout) + self._missing_tensors(layout)
        if missing:
            raise MopeqError(
                f"{self._where} lacks {missing[0]}" + (f" and {len(missing) - 1} others" if len(missing) > 1 else ""),
                "finish the download, or use the config.json that belongs to these weights",
            )
        return layout

    def _convert(self) -> None:
        """Keep what transformers makes of tensors by a converter, in the shapes that it gives them."""
        for layer_name, (converter, sources) in self._converted.items():
            ordered = tuple(sorted(sources, key=lambda source: _natural(source[0])))
            conversion = Conversion(converter, layer_name, self._live.model.config, ordered)
            names = tuple(name for name, _ in ordered)
            for name, made in conversion.run([self._empty(name) for name in names]).items():
                expected = self._live.shapes.get(name)
                if expected is None or tuple(made.shape) != expected:
                    raise MopeqError(
                        f"{names[0]} of {self._where} becomes {name} of shape {list(made.shape)} where its config asks "
                        f"for {list(expected) if expected else 'none'}",
                        "use the config.json that belongs to these weights",
                    )
                self._kept[name] = Kept(name, names, expected, conversion=conversion)

    def _empty(self, source: str) -> Any:
        import torch

        return torch.empty(self._checkpoint.tensors[source].shape, device="meta")

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
        for module in layout.modules:
            projections = len(module.form.projections)
            for index in range(module.first, module.first + module.count):
                if len(layout.experts.get(Expert(module.layer, index), ())) != projections:
                    missing.append(f"projections of expert {index} of layer {module.layer}")
        return missing

    def _missing_tensors(self, layout: Layout) -> list[str]:
        """Tensors of the live model outside the experts that the file does not hold, but for those tied to another."""
        present = set(layout.kept) | {f"{matrix.name}.weight" for matrix in layout.rest}
        present |= {f"{name}.weight" for name in self._own}
        wanted = {
            f"{module.matrix_name(index, projection)}.weight"
            for module in self._aside
            for index in range(module.count)
            for projection in module.form.projections
        }
        wanted |= set(self._live.shapes)
        return sorted(wanted - present - set(self._fused) - set(self._biases) - self._live.tied)


def _lists(modules: Iterable[str]) -> list[str]:
    """The lists of layers that these modules are in."""
    return list(dict.fromkeys(re.split(r"\.\d+\.", name)[0] for name in modules))


_NUMBERED = re.compile(r"experts\.(\d+)\.")
_ERNIE = "ErnieFuseAndSplitTextVisionExperts"


def _natural(name: str) -> list[Any]:
    """A key that sorts names by the numbers in them, as transformers sorts those of a list of modules."""
    return [int(part) if part.isdigit() else part for part in name.split(".")]
