"""Qwen3-Omni: a thinker, which sees, hears and writes, and a talker with experts of its own, which auto-round's loader
leaves stacked as they are."""

from typing import TYPE_CHECKING

from mopeq_hub.families.base import Family, Form

if TYPE_CHECKING:
    import torch


class _Qwen3Omni(Family):
    def form(self, module: "torch.nn.Module") -> Form | None:
        return None if type(module).__name__ == "Qwen3OmniMoeTalkerTextExperts" else super().form(module)


QWEN3_OMNI_MOE = _Qwen3Omni("qwen3_omni_moe")
