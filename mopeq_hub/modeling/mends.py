"""What auto-round's loader gets wrong and no way of writing the files avoids, made right once `mopeq_hub` is imported.

Each mend is for models of one type and touches no other. What needs one does not load by `from_pretrained` alone: its
card and `check` say so.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from mopeq_hub.after_import import after_import


@dataclass(frozen=True)
class Mend:
    """why: what is wrong, in words that end a sentence beginning with 'auto-round'. `prepared` is done to a model when
    auto-round has put its modules in place, `loaded` when their tensors are there."""

    why: str
    prepared: Callable[[Any], None] = lambda model: None
    loaded: Callable[[Any], None] = lambda model: None


def mend_for(model_type: str) -> Mend | None:
    """What a model of this type needs, if it needs anything."""
    return MENDS.get(model_type)


def arrange() -> None:
    """From now on models that need a mend get it, whether auto-round is imported already or later."""
    after_import({"auto_round.inference.convert_model": _mend_loader})


def _mend_loader(module: Any) -> None:
    convert, post_init = module.convert_hf_model, module.post_init

    @wraps(convert)
    def converted(model: Any, *args: Any, **kwargs: Any) -> Any:
        result = convert(model, *args, **kwargs)
        if mend := mend_for(model.config.model_type):
            mend.prepared(model)
        return result

    @wraps(post_init)
    def initialized(model: Any, *args: Any, **kwargs: Any) -> None:
        post_init(model, *args, **kwargs)
        if mend := mend_for(model.config.model_type):
            mend.loaded(model)

    module.convert_hf_model, module.post_init = converted, initialized


def _spare_initialized_blocks(model: Any) -> None:
    """Keep transformers from giving weights to experts that auto-round has taken apart."""
    for name, module in list(model.named_modules()):
        if getattr(module, "_unfused_experts", False):
            model.get_submodule(name.rpartition(".")[0])._is_hf_initialized = True


def _weigh_inputs(model: Any) -> None:
    """Have Llama 4's router weigh what goes into an expert, as the model does, and not what comes out."""
    for module in model.modules():
        if type(module).__name__ == "SequentialLlama4TextMoe":
            module.forward = _llama4_forward.__get__(module)


def _llama4_forward(self: Any, hidden_states: Any) -> Any:
    """transformers' Llama4TextMoe.forward, where the experts are modules of their own."""
    states = hidden_states.reshape(-1, self.hidden_dim)
    scores, logits = self.router(states)
    out = self.shared_expert(states)
    chosen = logits.topk(self.top_k, dim=1).indices
    for index in chosen.unique().tolist():
        tokens = (chosen == index).any(-1).nonzero(as_tuple=True)[0]
        weighed = states[tokens] * scores[tokens, index, None]
        out = out.index_add(0, tokens, self.experts[index](weighed).to(out.dtype))
    return out, logits


def _restore_attention(model: Any) -> None:
    """Take back what auto-round does to a function of that name in code that comes with older models of this kind."""
    module: Any = sys.modules[type(model).__module__]
    if getattr(module.eager_attention_forward, "_auto_round_mimo_patch", False):
        module.eager_attention_forward = module.eager_attention_forward.__wrapped__


def _restore_frequencies(model: Any) -> None:
    """Give rotary embeddings the frequencies that their own class computes."""
    import torch

    for module in model.modules():
        if getattr(module, "rope_type", None) == "default" and hasattr(module, "original_inv_freq"):
            own, _ = module.compute_default_rope_parameters(module.config)
            with torch.no_grad():
                module.inv_freq.copy_(own)
                module.original_inv_freq.copy_(own)


MENDS = {
    "ernie4_5_vl_moe": Mend(
        "gives ERNIE's rotary embedding the frequencies of other models", loaded=_restore_frequencies
    ),
    "llama4": Mend("weighs what comes out of Llama 4's experts instead of what goes in", prepared=_weigh_inputs),
    "qwen3_omni_moe_thinker": Mend(
        "lets transformers initialize experts that it has taken apart", prepared=_spare_initialized_blocks
    ),
    "mimo_v2_flash": Mend(
        "calls the model's attention with arguments that it does not have", loaded=_restore_attention
    ),
}
