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
    """why: what is wrong, in words that end a sentence beginning with 'auto-round'. `begun` is done to a model before
    auto-round puts its modules in place, `prepared` when it has, `loaded` when their tensors are there."""

    why: str
    begun: Callable[[Any], None] = lambda model: None
    prepared: Callable[[Any], None] = lambda model: None
    loaded: Callable[[Any], None] = lambda model: None


_NOTHING_WRONG = Mend("")


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
        mend = mend_for(model.config.model_type) or _NOTHING_WRONG
        mend.begun(model)
        result = convert(model, *args, **kwargs)
        mend.prepared(model)
        return result

    @wraps(post_init)
    def initialized(model: Any, *args: Any, **kwargs: Any) -> None:
        post_init(model, *args, **kwargs)
        (mend_for(model.config.model_type) or _NOTHING_WRONG).loaded(model)

    module.convert_hf_model, module.post_init = converted, initialized


def _spare_initialized_blocks(model: Any) -> None:
    """Keep transformers from giving weights to experts that auto-round has taken apart."""
    for name, module in list(model.named_modules()):
        if getattr(module, "_unfused_experts", False):
            model.get_submodule(name.rpartition(".")[0])._is_hf_initialized = True


def _tell_all_experts(model: Any) -> None:
    """Have experts whose config is a layer's own computed by auto-round as well, which tells the model's config."""
    for module in model.modules():
        if getattr(module, "_unfused_experts", False):
            module.config._experts_implementation = model.config._experts_implementation


def _norm_outputs(model: Any) -> None:
    """Have what each of Muse Spark's experts gives go through the norm that follows them."""
    for module in model.modules():
        if getattr(module, "_unfused_experts", False) and module.has_post_expert_norm:
            for expert in module:
                expert.down_proj.register_forward_hook(_normed(module.post_expert_norm))


def _normed(norm: Any) -> Callable[[Any, Any, Any], Any]:
    return lambda linear, given, output: norm(output)


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


def _take_apart(model: Any) -> None:
    """Have Step 3.7's stacked experts, which transformers does not mark as such, taken apart like others' are."""
    from auto_round.modeling.fused_moe import moe_experts_interface as interface

    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Step3p7Experts":
            # Else it would be guessed by their shape.
            module.is_transposed = False
            interface._unfuse_experts_weights_inplace(module, check_decorator=False, module_name=name)
            module.forward = interface.linear_loop_experts_forward.__get__(module)


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
    "dots3_note": Mend(
        "leaves it unsaid to the experts of the vision part that it has taken them apart", prepared=_tell_all_experts
    ),
    "muse_spark": Mend("leaves out the norm that follows each of Muse Spark's experts", prepared=_norm_outputs),
    "step3p7": Mend("does not take Step 3.7's stacked experts apart", begun=_take_apart),
    "mimo_v2_flash": Mend(
        "calls the model's attention with arguments that it does not have", loaded=_restore_attention
    ),
}
