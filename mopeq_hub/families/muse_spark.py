"""Muse Spark: a norm after each expert, which auto-round's loader leaves out; a mend puts it back."""

from typing import TYPE_CHECKING

from mopeq_hub.families.base import GATED, Family, Form

if TYPE_CHECKING:
    import torch


class _MuseSpark(Family):
    def form(self, module: "torch.nn.Module") -> Form | None:
        normed = getattr(module, "has_post_expert_norm", False)
        return Form(GATED, transposed=False, biased=False, normed=True) if normed else None


MUSE_SPARK = _MuseSpark("muse_spark_text", norm="pre_feedforward_layernorm")
