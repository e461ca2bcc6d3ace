"""Tensors that are published as they are, under their live names: most as the file holds them, some as a slice of one
or as what transformers makes of several."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.kernels.weight import Weight

if TYPE_CHECKING:
    import torch

_TORCH_ONLY = {"BF16": "bfloat16", "F8_E5M2": "float8_e5m2"}
"""What NumPy has no dtype for, by its name in torch."""
_KEPT_AS = {"F8_E4M3": "BF16", "MXFP4": "BF16"}
"""What is written of tensors that are not quantized, where it is not what they are stored as: no loader that knows the
published form knows the factors of float8."""


def kept_dtype(checkpoint: Checkpoint, source: str) -> str:
    """safetensors' name of the dtype in which a tensor of the file is written where it is not quantized."""
    return kept_as(checkpoint.tensors[source].dtype)


def kept_as(dtype: str) -> str:
    """The same of a tensor that is stored as `dtype`."""
    return _KEPT_AS.get(dtype, dtype)


@dataclass(frozen=True)
class Conversion:
    """One use of a converter of transformers, which auto-round's loader leaves out: it loads what this makes.

    converter: transformers' own. layer_name: the live name that its first target gets. config: the model's.
    sources: each tensor of the file that goes in, and the converter's pattern that it matched.
    """

    converter: Any
    layer_name: str
    config: Any
    sources: tuple[tuple[str, str], ...]

    def run(self, tensors: Sequence["torch.Tensor"]) -> dict[str, "torch.Tensor"]:
        """What comes of `tensors`, those of `sources`, by live name; of tensors on the meta device, their shapes."""
        collected: dict[str, Any] = {}
        for (_, pattern), tensor in zip(self.sources, tensors, strict=True):
            collected.setdefault(pattern, []).append(tensor)
        settings = {
            "source_patterns": self.converter.source_patterns,
            "target_patterns": self.converter.target_patterns,
            "full_layer_name": self.layer_name,
            "model": None,
            "config": self.config,
            "missing_keys": None,
        }
        for operation in self.converter.operations:
            collected = operation.convert(collected, **settings)
        made = {name: value[0] if isinstance(value, list) else value for name, value in collected.items()}
        target = next(name for name in made if name in self.layer_name)
        before, _, after = self.layer_name.partition(target)
        return {before + name + after: value for name, value in made.items()}


@dataclass(frozen=True)
class Kept:
    """A tensor that is published as it is. name: its live name. sources: the tensors of the file that it is made of.

    part: which expert's, and which of its rows, where it is a slice [rows] of a source [experts, rows].
    conversion: what makes it, where more is done to it.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    part: tuple[int, int, int] | None = None
    conversion: Conversion | None = None

    @cached_property
    def plain(self) -> str | None:
        """The source that this is, whole; None where something is made of it."""
        return self.sources[0] if self.part is None and self.conversion is None else None

    def read(self, checkpoint: Checkpoint, home: str | None = None) -> np.ndarray:
        """The values, in `kept_dtype` of its first source.

        home: a file of the checkpoint that is here; what lies in others is read by itself. None where all are.
        """
        found = [_values(checkpoint, name, home) for name in self.sources]
        if self.part is not None:
            index, start, stop = self.part
            return found[0][index, start:stop]
        if self.conversion is None:
            return found[0]
        dtypes = [kept_dtype(checkpoint, name) for name in self.sources]
        tensors = [as_tensor(values, dtype) for values, dtype in zip(found, dtypes, strict=True)]
        return _as_array(self.conversion.run(tensors)[self.name].contiguous())


def _values(checkpoint: Checkpoint, name: str, home: str | None) -> np.ndarray:
    if checkpoint.scale_of(name) is not None:
        return Weight(checkpoint.array(name), np.ascontiguousarray(checkpoint.factors(name))).bfloat16()
    near = home is None or checkpoint.tensors[name].file == home
    return checkpoint.array(name) if near else checkpoint.apart(name)


def as_tensor(values: np.ndarray, dtype: str) -> "torch.Tensor":
    """An array of the file as a tensor of safetensors' `dtype`, not copied. It must not be written to."""
    import torch

    with warnings.catch_warnings():
        # torch warns that the file cannot be written to: that is what is wanted, and nothing here tries.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(values)
    return tensor.view(getattr(torch, _TORCH_ONLY[dtype])) if dtype in _TORCH_ONLY else tensor


def _as_array(tensor: "torch.Tensor") -> np.ndarray:
    """A tensor as `Checkpoint.array` would give it."""
    import torch

    array: np.ndarray = (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array
