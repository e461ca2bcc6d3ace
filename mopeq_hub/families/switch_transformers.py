"""Switch Transformers: an encoder and a decoder of text, one expert a token, and experts that are modules of two linear
layers each, in every n-th layer. What is published is loaded by a class of ours (`modeling/switch_transformers`)."""

from typing import TYPE_CHECKING

from mopeq_hub.families.base import Family, Form

if TYPE_CHECKING:
    import torch

_FORM = Form((), transposed=False, biased=False, modules=(("up", "expert_{}.wi"), ("down", "expert_{}.wo")))


class _SwitchTransformers(Family):
    def form(self, module: "torch.nn.Module") -> Form | None:
        """That of a dictionary of networks by the names of the experts."""
        first = dict(module.named_children()).get("expert_0")
        return _FORM if first is not None and hasattr(first, "wi") and hasattr(first, "wo") else None


SWITCH_TRANSFORMERS = _SwitchTransformers(
    "switch_transformers", norm="layer_norm", whole=("mlp.router.classifier",), normalized=False
)
