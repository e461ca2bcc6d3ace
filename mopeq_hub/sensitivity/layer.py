"""One layer as signals see it: its experts' weights, where they lie in the file, and what chooses and feeds them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Matrix

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LayerView:
    """One decoder layer that has routed experts.

    experts: their matrices by projection, in the experts' order; `matrix.read(checkpoint)` maps one.
    router [experts, hidden], float32. initial: the same of an earlier checkpoint, None where none was given.
    norm [hidden], float32: what the layer multiplies its normalised hidden states by before they reach the experts.
    gated: what the experts do before down (`mopeq_hub.families.gating`).
    experts_per_token: how many the router chooses. normalized: whether the chosen experts' weights are made to sum to
    1. scores: `softmax` or `sigmoid`, what the router makes of its logits. bias [experts], float32: what is added to
    the scores to choose by; None for nothing.
    """

    layer: int
    checkpoint: Checkpoint
    experts: tuple[Mapping[str, Matrix], ...]
    router: NDArray[np.float32]
    norm: NDArray[np.float32]
    gated: "Callable[[torch.Tensor], torch.Tensor]"
    experts_per_token: int
    normalized: bool
    initial: NDArray[np.float32] | None = None
    scores: str = "softmax"
    bias: NDArray[np.float32] | None = None


def damaged(source: str) -> MopeqError:
    """The error about a tensor that holds what no weight should be."""
    return MopeqError(f"{source} holds NaN or infinite values", "the source is damaged; use another")
