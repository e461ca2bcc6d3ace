"""A layer made by hand: experts of random weights in memory."""

from typing import Any, cast

import numpy as np
import torch

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.experts import Matrix
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.sensitivity.layer import LayerView

HIDDEN, INNER = 64, 32


def silu(narrowed: torch.Tensor) -> torch.Tensor:
    """What most experts do with gate and up."""
    gate, up = narrowed.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


class Held:
    """Stands in for a Matrix: its weight is here."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self.name = self.source = name
        self.values = values.astype(np.float32)

    def read(self, checkpoint: Checkpoint | None) -> Weight:
        return Weight(self.values)


def layer(count: int = 8, seed: int = 0, **changes: Any) -> LayerView:
    """A layer of `count` experts, of which the router picks two."""
    draw = np.random.default_rng(seed)
    shapes = {"gate": (INNER, HIDDEN), "up": (INNER, HIDDEN), "down": (HIDDEN, INNER)}
    experts = tuple(
        {name: cast(Matrix, Held(f"{index}.{name}", draw.standard_normal(shape) / 8)) for name, shape in shapes.items()}
        for index in range(count)
    )
    given: dict[str, Any] = {
        "layer": 3,
        "checkpoint": None,
        "experts": experts,
        "router": draw.standard_normal((count, HIDDEN)).astype(np.float32) / 8,
        "norm": np.ones(HIDDEN, np.float32),
        "gated": silu,
        "experts_per_token": 2,
        "normalized": True,
    }
    return LayerView(**{**given, **changes})
