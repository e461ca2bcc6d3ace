"""Experts whose router vector changed least in norm during training, and those with the most uneven weights.

"Efficient Quantization of Mixture-of-Experts with Theoretical Generalization Guarantees" (ICLR 2026, arXiv 2604.06515):
experts of a layer are put in order of the change of their router vector's norm, ||w(T)|| - ||w(0)||, smallest first,
since those learned rare features that quantization destroys first. Then, from the last to the first, an expert is moved
up to right before the first whose maximum intra-neuron variance, times zeta, is still below its own: it would inject
more noise at few bits. The earlier in this order, the more bits. The authors' own code, which this follows, takes
zeta = 3 and the variance of the first matrix of the expert, here `gate`; for Mixtral, of which no initial checkpoint
is public, it takes the norm itself, ||w(T)||, for the change.

The paper gives widths by the order within each layer. So an expert's sensitivity is its place in it: n/n for the first
of n experts down to 1/n for the last, the same in every layer, in equal parts of its projections. Costs one read of the
gate projections; needs an earlier checkpoint's routers, or does with the stand-in.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mopeq_hub.experts import Matrix
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity.layer import LayerView, damaged
from mopeq_hub.sensitivity.profile import Values

ZETA = 3.0
"""How many times larger an expert's variance has to be than that of one which it is put before."""
STAND_IN = "the norm of each expert's router vector for its change in training, for want of an earlier checkpoint"


def settings(recipe: Recipe) -> dict[str, Any]:
    """What a profile says of how it was measured."""
    return {"name": "router", **({"initial": recipe.initial} if recipe.initial else {"stand_in": STAND_IN})}


def places(view: LayerView, recipe: Recipe) -> dict[str, Values]:
    """The sensitivities of a layer's experts; rising where the router's vector changed less."""
    norms = np.linalg.norm(view.router.astype(np.float64), axis=1)
    before = 0.0 if view.initial is None else np.linalg.norm(view.initial.astype(np.float64), axis=1)
    order = raised(list(np.argsort(norms - before, kind="stable")), [_variance(view, parts) for parts in view.experts])
    found: dict[str, Values] = {}
    count = len(order)
    for place, index in enumerate(order):
        parts = view.experts[index]
        found |= {matrix.name: ((count - place) / count / len(parts),) for matrix in parts.values()}
    return found


def raised(order: Sequence[int], variances: Sequence[float]) -> list[int]:
    """The order of the experts after those with uneven weights were moved up."""
    moved = list(order)
    for index in reversed(order):
        place = moved.index(index)
        above = next((at for at, other in enumerate(moved) if ZETA * variances[other] < variances[index]), place)
        if above < place:
            moved.insert(above, moved.pop(place))
    return moved


def _variance(view: LayerView, parts: Mapping[str, Matrix]) -> float:
    """The largest variance of the weights within a neuron, a row of the expert's first matrix."""
    matrix = parts.get("gate") or parts["up"]
    weight = matrix.read(view.checkpoint).float32()
    largest = float(weight.var(axis=1, ddof=1, dtype=np.float64).max())
    if not np.isfinite(largest):
        raise damaged(matrix.source)
    return largest
