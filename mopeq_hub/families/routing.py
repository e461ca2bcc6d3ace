"""What chooses and feeds the routed experts of each layer: the router's weight and the norm before it, in the live
model, found by structure."""

import copy
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from mopeq_hub.families.base import ExpertsModule, Family
from mopeq_hub.families.gating import gate_of

if TYPE_CHECKING:
    import torch
    from torch import nn


_SCORES = ("scoring_func", "expert_selection_fn")
"""What a config calls the function that makes scores of a router's logits."""
_SIGMOID = re.compile(r"logits(\.float\(\))?\.sigmoid\(|sigmoid\((router_)?logits")
"""How transformers' routers score by the sigmoid, where their config does not say so."""
_KNOWN_SCORES = ("softmax", "sigmoid")


@dataclass(frozen=True)
class Routing:
    """By live names. routers: by layer, the parameter [experts, hidden] that the router multiplies hidden states by.
    norms: by layer, the weight [hidden] of the norm through which hidden states reach router and experts.

    trouble: in one line, why one of them was not found, or what is not known of them; empty where all is.
    offset: what the norm adds to its weight, 1 in some families, 0 in most. gated: what the experts do before down.
    normalized: whether the weights of the experts that are chosen are made to sum to 1.
    scores: `softmax` or `sigmoid`, what the router makes of its logits. biases: by layer, what is added to the scores
    [experts] while experts are chosen, and not to what they weigh; empty in families that add nothing.
    """

    routers: dict[int, str]
    norms: dict[int, str]
    trouble: str
    offset: float
    gated: "Callable[[torch.Tensor], torch.Tensor]"
    normalized: bool
    scores: str
    biases: dict[int, str]


def find_routing(model: "nn.Module", family: Family, modules: Sequence[ExpertsModule], config: Any) -> Routing:
    """The routing of a model on the meta device; `config` is the text model's."""
    hidden = _hidden_size(model, config)
    routers, norms, biases, trouble, offset, scores = {}, {}, {}, family.routed_otherwise, 0.0, "softmax"
    if any(module.form.biased for module in modules):
        trouble = trouble or "its experts have biases, which are left out of account"
    if any(module.form.normed for module in modules):
        trouble = trouble or "what its experts give goes through a norm, which is left out of account"
    for module in modules:
        name, layer, count = module.name, module.layer, module.count
        if layer in routers:
            trouble = trouble or f"layer {layer} has experts of two kinds, each with a router"
        block, around = name.rpartition(".")[0], _around(model, name, family.norm)
        router = router_in(model.get_submodule(block), name[len(block) + 1 :], (count, hidden))
        if router is None:
            trouble = trouble or f"{block} has no parameter of shape [{count}, {hidden}] that can be its router"
        else:
            routers[layer] = f"{block}.{router}"
            scores = _scores(model, (routers[layer].rpartition(".")[0], block), config)
            if scores not in _KNOWN_SCORES:
                trouble = trouble or f"its routers score by {scores}"
            if bias := _bias(model.get_submodule(block), count):
                biases[layer] = f"{block}.{bias}"
        if not family.norm:
            trouble = trouble or "no norm comes before its experts"
        norm: Any = getattr(model.get_submodule(around), family.norm, None) if around else None
        if tuple(getattr(getattr(norm, "weight", None), "shape", ())) != (hidden,):
            trouble = trouble or f"{family.norm}, known as the norm before the experts, is not around {name}"
        else:
            norms[layer] = f"{around}.{family.norm}.weight"
            offset = _offset(norm) if len(norms) == 1 else offset
    normalized = getattr(config, "norm_topk_prob", family.normalized) is not False
    gated = gate_of(model.get_submodule(modules[0].name), modules[0].form)
    return Routing(routers, norms, trouble, offset, gated, normalized, scores, biases)


def _hidden_size(model: Any, config: Any) -> int:
    """Numbers of a token's hidden state; a config that comes with code may call that anything."""
    return int(getattr(config, "hidden_size", None) or model.get_input_embeddings().weight.shape[-1])


def _around(model: "nn.Module", experts: str, norm: str) -> str:
    """The name of the innermost module around the experts' that has the norm; empty where none has."""
    around = experts
    while around and not (norm and hasattr(model.get_submodule(around), norm)):
        around = around.rpartition(".")[0]
    return around


def router_in(block: "nn.Module", experts: str, shape: tuple[int, int]) -> str | None:
    """The name within the block of the parameter of this shape that lies least deep; None where that is none or not one
    alone. The experts' own are left out."""
    fitting = [
        name
        for name, parameter in block.named_parameters()
        if tuple(parameter.shape) == shape and not name.startswith(f"{experts}.")
    ]
    return _only(name for name in fitting if name.count(".") == min(each.count(".") for each in fitting))


def _scores(model: "nn.Module", names: Iterable[str], config: Any) -> str:
    """What becomes of logits: as the config says or, where that says nothing, as the code of the modules of these names
    does."""
    said = next((getattr(config, name) for name in _SCORES if getattr(config, name, None)), None)
    if said:
        return str(said)
    kinds: list[Any] = [type(model.get_submodule(name)) for name in names]
    return "sigmoid" if any(map(_has_sigmoid, kinds)) else "softmax"


@cache
def _has_sigmoid(kind: Any) -> bool:
    """Whether a class makes scores of logits by the sigmoid. All layers have the same, and looking takes a while."""
    return _SIGMOID.search(inspect.getsource(kind)) is not None


def _bias(block: "nn.Module", count: int) -> str | None:
    """The name within the block of what is added to its experts' scores while they are chosen, as all families that
    have it call it."""
    tensors = [*block.named_parameters(), *block.named_buffers()]
    found = (name for name, value in tensors if name.endswith("correction_bias") and value.numel() == count)
    return next(found, None)


def _only(names: Iterable[str]) -> str | None:
    found = list(names)
    return found[0] if len(found) == 1 else None


def _offset(norm: "nn.Module") -> float:
    """What a norm module gives of a vector of unit mean square where its weight is zero."""
    import torch

    tried = copy.deepcopy(norm)._apply(lambda tensor: torch.zeros(tensor.shape))
    unit = torch.ones_like(next(tried.parameters())).unsqueeze(0)
    unit[:, ::2] = -1
    with torch.no_grad():
        return float(torch.round((tried(unit) * unit).mean()))
