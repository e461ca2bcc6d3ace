"""What a family file states: just what transformers itself cannot tell about a kind of model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
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


def _holds(module: "torch.nn.Module", name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True


@dataclass(frozen=True)
class FusedParameter:
    """One 3-D parameter of a live experts module and the projections it stacks along its output rows, in order."""

    name: str
    projections: tuple[str, ...]


@dataclass(frozen=True)
class Family:
    """A kind of model: how to recognise it and how its experts lie in the live module.

    model_type: of the whole model, as config.json says it. marks: what else config.json has to say, where others have
    the same model type.
    text_model_types: those of the text model that were proven; empty where the model type alone decides.
    experts_count, experts_per_token: attributes of the text config that hold the counts; a number where it is always
    the same.
    norm: the module around the experts' through which hidden states reach router and experts.
    normalized: whether the weights of the experts that are chosen are made to sum to 1, where the config says nothing.
    fused: parameters of the live experts module, [experts, out, in]; none where it holds linear layers instead.
    modules: by projection, its linear layer in the experts module at load time, `{}` the expert's number.
    """

    model_type: str
    text_model_types: tuple[str, ...] = ()
    marks: tuple[tuple[str, str], ...] = ()
    experts_count: str = "num_experts"
    experts_per_token: str | int = "num_experts_per_tok"
    norm: str = "post_attention_layernorm"
    fused: tuple[FusedParameter, ...] = (
        FusedParameter("gate_up_proj", ("gate", "up")),
        FusedParameter("down_proj", ("down",)),
    )
    normalized: bool = True
    modules: tuple[tuple[str, str], ...] = UNFUSED

    def matrix_name(self, experts: str, index: int, projection: str) -> str:
        """Name of one projection's module at load time; `experts` is that of the experts module."""
        return matrix_name(experts, index, dict(self.modules)[projection])

    def stacked(self, parameter: str) -> tuple[str, ...]:
        """The projections that a live experts parameter of this name stacks."""
        return next(part.projections for part in self.fused if part.name == parameter)

    def is_experts(self, module: "torch.nn.Module") -> bool:
        """Whether this live module holds the routed experts of one layer."""
        parameters = dict(module.named_parameters(recurse=False))
        if not self.fused:
            return all(_holds(module, name.format(0)) for _, name in self.modules)
        return all(part.name in parameters and parameters[part.name].dim() == 3 for part in self.fused)

    def projection_of(self, parameter: str, source_pattern: str | None, patterns: Sequence[str]) -> str | None:
        """The projection that a tensor of the file holds by itself, or None where it holds the whole fused parameter.

        parameter: the live parameter it belongs to. source_pattern: the pattern of transformers' converter that matched
        it, one of `patterns`; their order is that in which transformers concatenates them.
        """
        if source_pattern is None or "*" not in source_pattern:
            return None
        return self.stacked(parameter)[list(patterns).index(source_pattern)]

    def expert_index(self, source_name: str, source_pattern: str) -> int:
        """The expert's number in the name of a file that stores one tensor an expert."""
        before, after = (re.escape(part) for part in source_pattern.split("*"))
        found = re.search(rf"{before}(\d+){after}", source_name)
        if found is None:
            raise ValueError(f"{source_name} does not match {source_pattern}")
        return int(found[1])

    def fits(self, config: dict[str, Any]) -> bool:
        """Whether a config.json is of this family."""
        if config.get("model_type") != self.model_type or any(config.get(key) != value for key, value in self.marks):
            return False
        text = config.get("text_config")
        text_type = text.get("model_type") if isinstance(text, dict) else None
        return not self.text_model_types or text_type in self.text_model_types
