"""Signals: each says of every expert's projections what narrowing them costs. The registry, by what a signal looks at.

BY_MATRIX look at one weight at a time, in any order. BY_LAYER look at one layer: its experts, its router, its norm.
Those that run the model (`RUNNING` of mopeq_hub.recipe) look at what its experts do while it answers.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Layout, Matrix
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.progress import Advance
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import by_running, distortion, hessian, product, router
from mopeq_hub.sensitivity.layer import LayerView
from mopeq_hub.sensitivity.profile import Profile, Values

MatrixSignal = Callable[[Weight, Matrix, Recipe], float]
"""The sensitivity of one projection; an expert's is the sum of its projections'. Not finite where a weight is not."""
LayerSignal = Callable[[LayerView, Recipe], Mapping[str, Values]]
"""Of each projection of a layer's experts, by its name: its sensitivity, or what each of the recipe's widths costs."""

BY_MATRIX: dict[str, MatrixSignal] = {"hessian": hessian.trace}
BY_LAYER: dict[str, LayerSignal] = {"distortion": distortion.costs, "router": router.places}
SETTINGS: dict[str, Callable[[Recipe], dict[str, Any]]] = {
    "hessian": hessian.settings,
    "distortion": distortion.settings,
    "router": router.settings,
    "frequency": by_running.settings,
    "fisher": by_running.settings,
    product.NAME: product.settings,
}
"""What a profile says of how it was measured: `name`, and all that would give other numbers. Two profiles of the same
weights with the same settings are the same, and are kept under their digest."""
COSTS: frozenset[str] = frozenset({"distortion", "fisher"})
"""Signals that give a cost for each of the recipe's widths; all others give one number."""


def measure_matrices(
    checkpoint: Checkpoint, matrices: Iterable[Matrix], recipe: Recipe, advance: Advance
) -> dict[str, Values]:
    """Sensitivity of each of these projections by name; `advance` is told the bytes read.

    Raises MopeqError on NaN or infinite weights, naming the tensor.
    """
    found: dict[str, Values] = {}
    for matrix in matrices:
        weight = matrix.read(checkpoint)
        value = BY_MATRIX[recipe.signal](weight, matrix, recipe)
        if not abs(value) < float("inf"):
            raise MopeqError(f"{matrix.source} holds NaN or infinite values", "the source is damaged; use another")
        found[matrix.name] = (value,)
        advance(weight.nbytes)
        checkpoint.let_go(matrix.source)
    return found


def profile_of(layout: Layout, measured: Mapping[str, Values], recipe: Recipe, commit: str) -> Profile:
    """The profile of what was measured on every projection, and on the rest where it was, whatever the order in which
    that was done."""
    experts = {
        expert: {str(matrix.projection): measured[matrix.name] for matrix in matrices}
        for expert, matrices in layout.experts.items()
    }
    rest = {matrix.name: measured[matrix.name] for matrix in layout.rest if matrix.name in measured}
    widths = recipe.packed_widths if recipe.signal in COSTS else ()
    return Profile(SETTINGS[recipe.signal](recipe), experts, commit, widths, rest)


__all__ = ["BY_LAYER", "BY_MATRIX", "COSTS", "SETTINGS", "LayerView", "Profile", "measure_matrices", "profile_of"]
