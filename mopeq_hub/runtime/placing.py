"""A model on the meta device made ready for packed weights: its experts modules and linear layers are replaced by those
that compute with them, and get their tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter

from mopeq_hub.errors import MopeqError
from mopeq_hub.families import family_of
from mopeq_hub.families.base import Form
from mopeq_hub.packing import PARTS
from mopeq_hub.runtime.experts import PackedExperts
from mopeq_hub.runtime.matrices import DTYPES
from mopeq_hub.runtime.modules import PackedLinear

OFFSETS = {"auto_round:auto_gptq": 1, "auto_round": 0}
"""By the packing formats that are known, what is added to zero points as they are stored."""


@dataclass
class Places:
    """Where the packed tensors of a model go, by its experts modules and linear layers. apart: experts modules whose
    experts are not packed, but lie in the files one by one all the same, as auto-round's loader takes them."""

    experts: dict[str, PackedExperts] = field(default_factory=dict)
    linears: dict[str, PackedLinear] = field(default_factory=dict)
    apart: dict[str, Form] = field(default_factory=dict)

    def fill(self, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> None:
        """Give each experts module its tensors, as they lie; linear layers have theirs. What computes with vectors of
        this dtype is compiled. Raises MopeqError where a tensor is missing or misshapen."""
        for name, module in self.experts.items():
            for part in module.names():
                if f"{name}.{part}" not in tensors:
                    raise MopeqError(f"{name}.{part} is not in the model's files", "get them again")
                tensor = tensors[f"{name}.{part}"]
                # What a whole model was changed to, auto-round's modules change their scales to as well.
                module.packed[part] = tensor.half() if tensor.is_floating_point() else tensor
        for each in (*self.experts.values(), *self.linears.values()):
            # Compiled, or read from the disk, while the model is loaded and not while somebody waits for an answer.
            each.compile_for(dtype)


def together(name: str, form: Form) -> list[WeightConverter]:
    """How the tensors of experts that lie in the files one by one become those of the module of this name."""
    steps = []
    for part in form.fused:
        sources = [f"{name}.{form.projections[projection].format('*')}" for projection in part.projections]
        merged: list[Any] = [MergeModulelist(dim=0), *([Concatenate(dim=1)] if len(sources) > 1 else [])]
        turned = [Transpose(1, 2)] if form.transposed else []
        steps.append(
            WeightConverter([f"{source}.weight" for source in sources], f"{name}.{part.name}", merged + turned)
        )
        if form.biased:
            steps.append(WeightConverter([f"{source}.bias" for source in sources], f"{name}.{part.name}_bias", merged))
    return steps


def replace(model: Any, tensors: Mapping[str, torch.Tensor], packing_format: str) -> Places:
    """Replace what has packed tensors in a model on the meta device, of its own classes, by modules that compute with
    them. tensors: all of the model's, by live names. Raises MopeqError where a packed one belongs to nothing in it.
    """
    offset, config = OFFSETS[packing_format], model.config
    packed = [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]
    family = family_of(config.model_type, config.get_text_config(decoder=True).model_type)
    places, modules = Places(), dict(model.named_modules())
    for name, module in modules.items():
        form = family.form(module)
        if form is None or not form.fused:
            continue
        if f"{name}.{next(iter(form.projections.values())).format(0)}.qweight" in tensors:
            places.experts[name] = PackedExperts(module, form, offset)
            _put(model, name, places.experts[name])
        else:
            places.apart[name] = form
    held = tuple(f"{name}." for name in places.experts)
    for name in packed:
        if name.startswith(held):
            continue
        linear = modules.get(name)
        if not isinstance(linear, nn.Linear):
            raise MopeqError(
                f"{name} is packed in the model's files, and is no linear layer of the model",
                "load it by the class that its config.json names",
            )
        shapes = {part: tensors[f"{name}.{part}"].shape for part in PARTS}
        parts = {part: torch.empty(shape, dtype=DTYPES[part], device="meta") for part, shape in shapes.items()}
        places.linears[name] = PackedLinear(linear, parts, offset)
        _put(model, name, places.linears[name])
    return places


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    home, _, last = name.rpartition(".")
    around = model.get_submodule(home)
    setattr(around, last, module)
    for each in (around, *module.modules()):
        # Else transformers initialises what it finds in them, and looks for weights that are packed.
        each._is_hf_initialized = True  # type: ignore[assignment]
