"""Llama 4: experts outside transformers' experts interface, which auto-round's loader takes apart all the same."""

from typing import TYPE_CHECKING

from mopeq_hub.families.base import GATED, Family, Form

if TYPE_CHECKING:
    import torch


class _Llama4(Family):
    def form(self, module: "torch.nn.Module") -> Form | None:
        return Form(GATED, transposed=True, biased=False) if type(module).__name__ == "Llama4TextExperts" else None


LLAMA4 = _Llama4("llama4_text")
