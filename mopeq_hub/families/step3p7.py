"""Step 3.7: stacked experts outside transformers' experts interface, which auto-round's loader, once mended, takes
apart."""

from typing import TYPE_CHECKING

from mopeq_hub.families.base import GATED, Family, Form

if TYPE_CHECKING:
    import torch


class _Step3p7(Family):
    def form(self, module: "torch.nn.Module") -> Form | None:
        return Form(GATED, transposed=False, biased=False) if type(module).__name__ == "Step3p7Experts" else None


STEP3P7 = _Step3p7("step3p7")
