"""The paper's signal: the trace of the Hessian of the Frobenius norm at the expert's weights.

MoPEQ (arXiv 2509.02512), section 3.2: with the loss L(W) = ||W||_F, the sensitivity of an expert is the sum of the
Hessian traces of its gate, up and down projections, estimated by Hutchinson's method. With w = vec(W) / ||W||_F and n
weights the Hessian is (I - w w^T) / ||W||_F, so its trace is exactly (n - 1) / ||W||_F: `exact` computes that in one
pass over the weights; `hutchinson` keeps the paper's estimator, to compare with.
"""

import math
import zlib
from typing import TYPE_CHECKING, Any

from mopeq_hub.experts import Matrix
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.recipe import Recipe

if TYPE_CHECKING:
    import torch


def trace(weight: Weight, matrix: Matrix, recipe: Recipe) -> float:
    """The trace at one projection's weight, by the recipe's estimator."""
    if recipe.estimator == "exact":
        return exact_trace(weight)
    import torch

    # A seed of its own for each projection, so that the order in which they are measured changes nothing.
    seed = zlib.crc32(f"{recipe.seed} {matrix.name}".encode())
    return hutchinson_trace(weight, recipe.probes, torch.Generator().manual_seed(seed))


def settings(recipe: Recipe) -> dict[str, Any]:
    """What a profile says of how it was measured."""
    probes = {"probes": recipe.probes, "seed": recipe.seed} if recipe.estimator == "hutchinson" else {}
    return {"name": "hessian", "estimator": recipe.estimator, **probes}


def exact_trace(weight: Weight) -> float:
    """Trace of the Hessian of ||W||_F at `weight` [out, in]: (n - 1) / ||W||_F.

    A matrix of zeros has no Hessian there; its trace is taken as 0, since nothing is lost by quantizing it.
    """
    from mopeq_hub.kernels.norm import sum_of_squares

    squares = sum_of_squares(weight)
    if not math.isfinite(squares):
        return math.nan
    return (weight.values.size - 1) / math.sqrt(squares) if squares != 0 else 0.0


def hutchinson_trace(weight: Weight, probes: int, generator: "torch.Generator") -> float:
    """Hutchinson's estimate of the same trace: mean over `probes` Rademacher vectors v of v . Hv, Hv by double
    backward.

    MoPEQ (arXiv 2509.02512), Algorithm 1. `weight` [out, in]; the arithmetic is float32.
    """
    import torch

    point = torch.from_numpy(weight.float32()).requires_grad_(True)
    loss = torch.linalg.vector_norm(point)
    if loss.item() == 0:
        return 0.0
    (gradient,) = torch.autograd.grad(loss, point, create_graph=True)
    total = 0.0
    for _ in range(probes):
        probe = torch.randint(0, 2, point.shape, generator=generator, dtype=torch.float32) * 2 - 1
        (product,) = torch.autograd.grad(gradient, point, grad_outputs=probe, retain_graph=True)
        total += float((probe * product).sum(dtype=torch.float64))
    return total / probes
