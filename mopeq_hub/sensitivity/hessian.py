"""The paper's signal: the trace of the Hessian of the Frobenius norm at the expert's weights.

MoPEQ (arXiv 2509.02512), section 3.2: with the loss L(W) = ||W||_F, the sensitivity of an expert is the sum of the
Hessian traces of its gate, up and down projections, estimated by Hutchinson's method. With w = vec(W) / ||W||_F and n
weights the Hessian is (I - w w^T) / ||W||_F, so its trace is exactly (n - 1) / ||W||_F: `exact` computes that in one
pass over the weights; `hutchinson` keeps the paper's estimator, to compare with.
"""

import math
from typing import TYPE_CHECKING

import numpy as np
from numba import njit, prange

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Expert, Layout
from mopeq_hub.progress import Advance
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity.profile import Profile

if TYPE_CHECKING:
    import torch

_LANES = 16


def measure(checkpoint: Checkpoint, layout: Layout, recipe: Recipe, advance: Advance) -> Profile:
    """One pass over the experts' weights. Raises MopeqError on NaN or infinite weights, naming the tensor."""
    import torch

    generator = torch.Generator().manual_seed(recipe.seed)
    sensitivities: dict[Expert, float] = dict.fromkeys(layout.experts, 0.0)
    for matrix in layout.matrices:
        if matrix.expert is None:
            continue
        weight = matrix.read(checkpoint)
        squares = sum_of_squares(weight)
        if not math.isfinite(squares):
            raise MopeqError(f"{matrix.source} holds NaN or infinite values", "the source is damaged; use another")
        if recipe.estimator == "exact":
            sensitivities[matrix.expert] += _trace(weight.numel(), squares)
        else:
            sensitivities[matrix.expert] += hutchinson_trace(weight, recipe.probes, generator)
        advance(weight.numel() * weight.element_size())
    settings = {"probes": recipe.probes, "seed": recipe.seed} if recipe.estimator == "hutchinson" else {}
    return Profile({"name": "hessian", "estimator": recipe.estimator, **settings}, sensitivities)


def exact_trace(weight: "torch.Tensor") -> float:
    """Trace of the Hessian of ||W||_F at `weight` [out, in], any float dtype: (n - 1) / ||W||_F.

    A matrix of zeros has no Hessian there; its trace is taken as 0, since nothing is lost by quantizing it.
    """
    return _trace(weight.numel(), sum_of_squares(weight))


def _trace(count: int, squares: float) -> float:
    """(n - 1) / ||W||_F of n weights whose squares have this sum."""
    return (count - 1) / math.sqrt(squares) if squares != 0 else 0.0


def sum_of_squares(weight: "torch.Tensor") -> float:
    """Of a matrix of any float dtype, in float64; the same number on every CPU and with any number of threads."""
    return float(_sum_of_squares(np.ascontiguousarray(weight.float().numpy())))


@njit(parallel=True, cache=True, nogil=True)
def _sum_of_squares(weight: np.ndarray) -> float:
    rows, columns = weight.shape
    sums = np.zeros(rows, dtype=np.float64)
    for row in prange(rows):
        # A fixed number of lanes, so that the loop vectorizes without its order depending on the CPU.
        lanes = np.zeros(_LANES, dtype=np.float64)
        whole = columns // _LANES * _LANES
        for start in range(0, whole, _LANES):
            for lane in range(_LANES):
                value = np.float64(weight[row, start + lane])
                lanes[lane] += value * value
        for column in range(whole, columns):
            value = np.float64(weight[row, column])
            lanes[0] += value * value
        for lane in range(_LANES):
            sums[row] += lanes[lane]
    total = 0.0
    for row in range(rows):
        total += sums[row]
    return total


def hutchinson_trace(weight: "torch.Tensor", probes: int, generator: "torch.Generator") -> float:
    """Hutchinson's estimate of the same trace: mean over `probes` Rademacher vectors v of v . Hv, Hv by double
    backward.

    MoPEQ (arXiv 2509.02512), Algorithm 1. `weight` [out, in], any float dtype; the arithmetic is float32.
    """
    import torch

    point = weight.float().clone().requires_grad_(True)
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
