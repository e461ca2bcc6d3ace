"""What an expert does between its first matrices and down, as its live module does it: activation, gate and limits."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mopeq_hub.families.base import Form
from mopeq_hub.families.standing_in import between

if TYPE_CHECKING:
    import torch


def gate_of(module: Any, form: Form, place: int = 0) -> "Callable[[torch.Tensor], torch.Tensor]":
    """What goes into down [t, width], of gate and up side by side [t, 2 * width], or of up alone; of the expert with
    this number in the experts module, whose weights are not looked at."""
    from torch import nn

    if isinstance(module, nn.ModuleList):
        *first, down = (name.partition(".")[2] for name in form.projections.values())
        return between(module[place], first, down)

    def gated(narrowed: "torch.Tensor") -> "torch.Tensor":
        names = list(form.projections.values())
        home = module if form.fused else module.get_submodule(names[0].format(place).rpartition(".")[0])
        if len(names) > 2 and hasattr(home, "_apply_gate"):
            return home._apply_gate(narrowed)  # type: ignore[no-any-return]
        bent = home.act_fn if form.fused else home.act
        if len(names) == 2:
            return bent(narrowed)  # type: ignore[no-any-return]
        gate, up = narrowed.chunk(2, -1)
        return bent(gate) * up  # type: ignore[no-any-return]

    return gated
