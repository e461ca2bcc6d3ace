"""The paper's signal: the trace of the Hessian of the Frobenius norm at the expert's weights.

MoPEQ (arXiv 2509.02512), section 3.2: with the loss L(W) = ||W||_F, the sensitivity of an expert is the sum of the
Hessian traces of its gate, up and down projections, estimated by Hutchinson's method. With w = vec(W) / ||W||_F and n
weights the Hessian is (I - w w^T) / ||W||_F, so its trace is exactly (n - 1) / ||W||_F: `exact` computes that in one
pass over the weights; `hutchinson` keeps the paper's estimator, to compare with.
"""

import math
from typing import TYPE_CHECKING

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Expert, Layout
from mopeq_hub.kernels.norm import sum_of_squares
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.progress import Advance
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity.profile import Profile

if TYPE_CHECKING:
    import torch

def measure(checkpoint: Checkpoint, layout: Layout, recipe: Recipe, advance: Advance) -> Profile:
    """One pass over the experts' weights. Raises MopeqError on NaN or infinite weights, naming the tensor."""
    import torch

    generator = torch.Generator().manual_seed(recipe.seed)
    sensitivities: dict[Expert, float] = dict.fromkeys(layout.experts, 0.0)
    for matrix in layout.matrices:
        if matrix.expert is None:
            continue
        weight = matrix.read(checkpoint)
        count = weight.values.size
        squares = sum_of_squares(weight)
        if not math.isfinite(squares):
            raise MopeqError(f"{matrix.source} holds NaN or infinite values", "the source is damaged; use another")
        if recipe.estimator == "exact":
            sensitivities[matrix.expert] += _trace(count, squares)
        else:
            sensitivities[matrix.expert] += hutchinson_trace(weight, recipe.probes, generator)
        advance(weight.nbytes)
    settings = {"probes": recipe.probes, "seed": recipe.seed} if recipe.estimator == "hutchinson" else {}
    return Profile({"name": "hessian", "estimator": recipe.estimator, **settings}, sensitivities)


def exact_trace(weight: Weight) -> float:
    """Trace of the Hessian of ||W||_F at `weight` [out, in]: (n - 1) / ||W||_F.

    A matrix of zeros has no Hessian there; its trace is taken as 0, since nothing is lost by quantizing it.
    """
    return _trace(weight.values.size, sum_of_squares(weight))


def _trace(count: int, squares: float) -> float:
    """(n - 1) / ||W||_F of n weights whose squares have this sum."""
    return (count - 1) / math.sqrt(squares) if squares != 0 else 0.0


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
