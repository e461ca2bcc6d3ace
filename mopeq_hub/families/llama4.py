"""Llama 4: experts outside transformers' experts interface, which auto-round's loader takes apart all the same."""

from typing import TYPE_CHECKING, Any

from mopeq_hub.families.base import GATED, Family, Form

if TYPE_CHECKING:
    import torch


class _Llama4(Family):
    def trouble_with(self, config: dict[str, Any]) -> str:
        alone = config.get("model_type") == "llama4_text"
        return "Llama 4 without its vision part, which auto-round's loader does not take apart" if alone else ""

    def form(self, module: "torch.nn.Module") -> Form | None:
        return Form(GATED, transposed=True, biased=False) if type(module).__name__ == "Llama4TextExperts" else None


LLAMA4 = _Llama4("llama4_text", routed_otherwise="its routers weigh what goes into experts, not what comes out")
