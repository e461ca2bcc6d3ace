"""Signals: each gives every expert a number, its sensitivity. The registry, and the pass over the weights."""

from collections.abc import Callable, Iterable

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Layout, Matrix
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.progress import Advance
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import hessian
from mopeq_hub.sensitivity.profile import Profile

Signal = Callable[[Weight, Matrix, Recipe], float]
"""The sensitivity of one projection; an expert's is the sum of its projections'. Not finite where a weight is not."""

SIGNALS: dict[str, Signal] = {"hessian": hessian.trace}
SETTINGS = {"hessian": hessian.settings}


def measure_matrices(
    checkpoint: Checkpoint, matrices: Iterable[Matrix], recipe: Recipe, advance: Advance
) -> dict[str, float]:
    """Sensitivity of each of these projections by name; `advance` is told the bytes read.

    Raises MopeqError on NaN or infinite weights, naming the tensor.
    """
    found = {}
    for matrix in matrices:
        weight = matrix.read(checkpoint)
        found[matrix.name] = SIGNALS[recipe.signal](weight, matrix, recipe)
        if not abs(found[matrix.name]) < float("inf"):
            raise MopeqError(f"{matrix.source} holds NaN or infinite values", "the source is damaged; use another")
        advance(weight.nbytes)
        checkpoint.let_go(matrix.source)
    return found


def profile_of(layout: Layout, measured: dict[str, float], recipe: Recipe, commit: str) -> Profile:
    """The profile of what was measured on every projection, and on the rest where it was, whatever the order in which
    that was done."""
    experts = {
        expert: {str(matrix.projection): (measured[matrix.name],) for matrix in matrices}
        for expert, matrices in layout.experts.items()
    }
    rest = {matrix.name: (measured[matrix.name],) for matrix in layout.rest if matrix.name in measured}
    return Profile(SETTINGS[recipe.signal](recipe), experts, commit, rest=rest)


__all__ = ["SIGNALS", "Profile", "Signal", "measure_matrices", "profile_of"]
