"""What a family states, and what is read of the experts modules of its live model."""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PROJECTIONS = ("gate", "up", "down")
UNFUSED = (("gate", "{}.gate_proj"), ("up", "{}.up_proj"), ("down", "{}.down_proj"))
"""Where in an experts module auto-round's loader puts an expert's projections, `{}` its number, once it has taken fused
ones apart."""


def matrix_name(experts: str, index: int, module: str) -> str:
    """Name of one projection's module at load time; `module` as in `UNFUSED`."""
    return f"{experts}.{module.format(index)}"


@dataclass(frozen=True)
class Fused:
    """One 3-D parameter of a live experts module, and the projections that it stacks along its outputs, in order."""

    name: str
    projections: tuple[str, ...]


GATED = (Fused("gate_up_proj", ("gate", "up")), Fused("down_proj", ("down",)))
UNGATED = (Fused("up_proj", ("up",)), Fused("down_proj", ("down",)))


@dataclass(frozen=True)
class Form:
    """How a live experts module holds its experts: `fused`, parameters [experts, out, in], or [experts, in, out] where
    it is `transposed`; `biased` ones have a parameter `<name>_bias` [experts, out] beside each. modules: by projection,
    its linear layer within the module at load time, `{}` the expert's number; where nothing is fused, also before.
    normed: what each expert gives goes through the module's `post_expert_norm` before it is weighed.

    Where gate and up are interleaved in the live module, auto-round's loader still calls the first half of their rows
    gate and the second up, and puts both together again before the module's own activation: so do we.
    """

    fused: tuple[Fused, ...]
    transposed: bool
    biased: bool
    modules: tuple[tuple[str, str], ...] = UNFUSED
    normed: bool = False

    @cached_property
    def projections(self) -> dict[str, str]:
        """Those that its experts have, in order, and where each is at load time."""
        stacked = [name for part in self.fused for name in part.projections]
        return {name: module for name, module in self.modules if name in stacked or not stacked}


@dataclass(frozen=True)
class ExpertsModule:
    """A live module that holds `count` routed experts of a decoder layer, from that of the number `first` on."""

    name: str
    layer: int
    first: int
    count: int
    form: Form

    def matrix_name(self, index: int, projection: str) -> str:
        """The module of a projection at load time; `index` is the expert's within the layer."""
        return matrix_name(self.name, index - self.first, self.form.projections[projection])


@dataclass(frozen=True)
class Family:
    """A kind of text model, and what transformers cannot tell of it.

    model_type: of the text model, as config.json says it.
    norm: the module around the experts' through which hidden states reach router and experts; empty where none is.
    whole: linear layers, by the ends of their names, that are never quantized: code looks at their weights, which
    packed layers do not have, as sparse attention's indexers do to compute in its dtype.
    normalized: whether the weights of the experts that are chosen are made to sum to 1, where the config says nothing.
    routed_otherwise: in one line, what signals of a layer's weights do not know of its routing; empty if nothing.
    undivided: why no model of this kind can be run part by part, in words that follow "a model"; empty where all can.
    refused: in one line, why models of this kind cannot be published; empty where they can.
    """

    model_type: str
    norm: str = "post_attention_layernorm"
    whole: tuple[str, ...] = ("indexer.weights_proj",)
    normalized: bool = True
    routed_otherwise: str = ""
    undivided: str = ""
    refused: str = ""

    def form(self, module: "torch.nn.Module") -> Form | None:
        """How this live module holds routed experts; None where it holds none that auto-round's loader takes apart.

        transformers marks those of its experts interface, which auto-round goes by.
        """
        if not hasattr(module, "has_gate") or getattr(module, "has_post_expert_norm", False):
            return None
        return Form(GATED if module.has_gate else UNGATED, bool(module.is_transposed), bool(module.has_bias))

    def expression(self, module: str) -> str:
        """A live name as a regular expression of auto-round's `extra_config`."""
        return re.escape(module)

    def trouble_with(self, config: dict[str, Any]) -> str:
        """Why a model with this config.json is none of this family, though its model type says so, or is refused as all
        of it are; empty if it is one."""
        return self.refused
