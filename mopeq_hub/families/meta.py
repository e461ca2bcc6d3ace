"""A model built on the meta device, where tensors have shapes and no memory, and as little computed as that takes.

There torch computes in Python, by functions that import sympy and its symbolic shapes, a tenth of what planning takes.
So nothing is drawn for parameters, and the few numbers that others are computed from have memory while it is built.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_DRAWING = ("kaiming_uniform_", "normal_", "uniform_")
"""Functions that draw the values of a tensor which is there."""
_DRAWN = (torch.rand, torch.randn)
_NUMBERS = (torch.arange, torch.tensor)
"""What rotary frequencies and their like begin with."""


class _Cheaply(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, given: Any = (), named: Any = None) -> Any:
        named = dict(named or {})
        if getattr(function, "__name__", "") in _DRAWING:
            return given[0] if given else named["tensor"]
        if function in _DRAWN:
            named.pop("generator", None)
            return torch.empty(*given, **named)
        if function in _NUMBERS and "device" not in named:
            return function(*given, **named, device="cpu")
        return function(*given, **named)


def build(auto_class: Any, config: Any, **named: Any) -> "PreTrainedModel":
    """What `auto_class` makes of a config, all of it on the meta device. Raises what that raises."""
    try:
        with torch.device("meta"), _Cheaply():
            return auto_class.from_config(config, **named).to("meta")  # type: ignore[no-any-return]
    except RuntimeError:
        # Numbers with memory met others without.
        with torch.device("meta"):
            return auto_class.from_config(config, **named)  # type: ignore[no-any-return]
