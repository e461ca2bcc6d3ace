"""Switch Transformers whose linear layers may be quantized modules, which hold no tensor called `weight`.

transformers' own class cannot be loaded with quantized experts: it asks each expert's matrices for their `weight`, to
initialise what the files lack, and `wo` whenever it computes. Modules of a class that is not transformers' own are not
initialised once all their parameters came from files; what is computed is mended here. Weights that are not quantized
are loaded and computed with as transformers does it.
"""

import torch
from transformers import SwitchTransformersConfig
from transformers import SwitchTransformersForConditionalGeneration as Original
from transformers.models.switch_transformers.modeling_switch_transformers import SwitchTransformersDenseActDense


class DenseActDense(SwitchTransformersDenseActDense):
    """A feed-forward network of two matrices, an expert or a dense layer's."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Of hidden states [..., hidden], what the network makes of them, in their shape."""
        inner = self.dropout(self.act(self.wi(hidden_states)))
        weight = getattr(self.wo, "weight", None)
        # A quantized module computes in the dtype of what it is given.
        return self.wo(inner if weight is None else inner.to(weight.dtype))


class SwitchTransformersForConditionalGeneration(Original):
    """transformers' class of that name, with feed-forward networks that ask no module for its `weight`."""

    def __init__(self, config: SwitchTransformersConfig) -> None:
        super().__init__(config)
        for module in self.modules():
            if type(module) is SwitchTransformersDenseActDense:
                module.__class__ = DenseActDense
