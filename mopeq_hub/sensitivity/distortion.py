"""The damage itself, without data: what each width of each projection does to what its layer's experts give.

Inputs are drawn as the layer would get them: x = z * gamma, z of normally distributed numbers made of unit mean square,
gamma the weight of the norm before the experts. The router, a softmax or one sigmoid an expert, picks the k best of
its experts for each of `DRAWN` such inputs, by scores to which some families add a bias. With p(x) what it weighs an
expert f with where it picks it, else 0, the cost of a width of one projection is

    E[p(x)^2] * E[|f(x) - f_q(x)|^2] / E[|sum over experts of p(x) f(x)|^2],

f_q being f with that projection alone quantized: groups and grid are the recipe's, each scale is searched. So it is the
share of what the layer's routed experts give that is lost, which puts all layers on one scale. The first factor is over
all inputs; none is taken as less than that of one pick in two times as many, so that no cost is 0 by the draw. The
second is over inputs that pick the expert: those of the first `SHARED`, and more to make `EACH`; where too few pick it,
the inputs that come closest to it make up for them. The third is over the first `SHARED` inputs.

What is left out: real hidden states are not normally distributed; some routers choose among groups first, or scale
their logits; shared experts; damage of several projections adds up and is not independent. It costs a read of the
experts, a quantization of each for each width, and a few matrix products; it needs the weights alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Matrix
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.packing import dequantize, quantize
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity.layer import LayerView
from mopeq_hub.sensitivity.profile import Values
from mopeq_hub.sensitivity.threads import each_alone

if TYPE_CHECKING:
    import torch

DRAWN, SHARED, EACH = 4096, 256, 64
"""Inputs the router sees; those of them on which the layer's output is computed; enough for one expert."""
_DIGITS = 4
"""Of a cost, so that sums that another number of threads rounds otherwise give the same number."""


def settings(recipe: Recipe) -> dict[str, Any]:
    """What a profile says of how it was measured."""
    return {
        "name": "distortion",
        "inputs": [DRAWN, SHARED, EACH],
        "seed": recipe.seed,
        "group_size": recipe.group_size,
        "symmetric": recipe.symmetric,
    }


def costs(view: LayerView, recipe: Recipe) -> dict[str, Values]:
    """The cost of each of the recipe's widths, for each projection of a layer's experts by its name.

    Raises MopeqError on NaN or infinite weights, naming the tensor.
    """
    inputs = _inputs(view, recipe.seed)
    picks = _Picks.of(inputs, view)
    given = np.zeros((SHARED, inputs.shape[1]))
    found: dict[str, NDArray[np.float64]] = {}
    tried = [picks.inputs_of(index) for index in range(len(view.experts))]
    work = [
        lambda parts=parts, rows=rows: _damage(view, parts, inputs[rows], recipe)
        for parts, rows in zip(view.experts, tried, strict=True)
    ]
    for index, (outputs, damage) in enumerate(each_alone(work)):
        rows, shared = tried[index], tried[index] < SHARED
        given[rows[shared]] += picks.weights[rows[shared], index, None] * outputs[shared]
        found |= {matrix.name: picks.use_of(index) * damage[name] for name, matrix in view.experts[index].items()}
    # Where the experts give nothing, nothing is lost of it either.
    whole = float(np.square(given).sum(1).mean()) or 1.0
    return {name: tuple(float(f"{cost / whole:.{_DIGITS}g}") for cost in damage) for name, damage in found.items()}


def _inputs(view: LayerView, seed: int) -> NDArray[np.float32]:
    """Hidden states as router and experts get them [DRAWN, hidden]."""
    drawn = np.random.default_rng([seed, view.layer]).standard_normal((DRAWN, len(view.norm)), np.float32)
    drawn /= np.sqrt(np.square(drawn).mean(axis=1, keepdims=True))
    return drawn * view.norm


@dataclass(frozen=True)
class _Picks:
    """What the router makes of the inputs. choice, what it picks by, and weights [DRAWN, experts]; an expert that is
    not picked weighs 0. A factor that is common to all weights, as some families have it, changes no cost."""

    choice: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, inputs: NDArray[np.float32], view: LayerView) -> "_Picks":
        # In float64, so that no other order of sums picks other experts.
        logits = inputs.astype(np.float64) @ view.router.T.astype(np.float64)
        if view.scores == "sigmoid":
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(logits - logits.max(axis=1, keepdims=True))
            scores /= scores.sum(axis=1, keepdims=True)
        # Both functions keep the order of logits, which are not rounded to 0 or 1.
        choice = logits if view.bias is None else scores + view.bias
        best = np.argsort(-choice, axis=1, kind="stable")[:, : view.experts_per_token]
        weights = np.zeros_like(scores)
        np.put_along_axis(weights, best, np.take_along_axis(scores, best, axis=1), axis=1)
        return cls(choice, weights / weights.sum(axis=1, keepdims=True) if view.normalized else weights)

    def inputs_of(self, expert: int) -> NDArray[np.intp]:
        """The inputs on which an expert is tried."""
        picked = self.weights[:, expert] > 0
        chosen = np.flatnonzero(picked)
        chosen = chosen[: max(EACH, int((chosen < SHARED).sum()))]
        others = np.argsort(-np.where(picked, -np.inf, self.choice[:, expert]), kind="stable")
        return np.sort(np.append(chosen, others[: max(0, EACH - len(chosen))]))

    def use_of(self, expert: int) -> float:
        """The mean square of what an expert weighs, over all inputs."""
        squares = np.square(self.weights)
        least = squares.sum() / np.count_nonzero(squares) / (2 * len(squares))
        return float(max(squares[:, expert].mean(), least))


def _damage(
    view: LayerView, parts: Mapping[str, Matrix], tried: NDArray[np.float32], recipe: Recipe
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float64]]]:
    """What an expert gives for these inputs [n, hidden], and for each projection and each of the recipe's widths the
    mean squared distance of what it gives with that one quantized."""
    import torch

    inputs = torch.from_numpy(tried)
    whole, narrow = {}, {}
    for name, matrix in parts.items():
        weight = matrix.read(view.checkpoint)
        whole[name] = torch.from_numpy(weight.float32())
        narrow[name] = [_narrowed(weight, bits, recipe, matrix) for bits in recipe.bits]
    down = whole["down"]
    first = {name: inputs @ whole[name].T for name in ("gate", "up") if name in parts}
    hidden = view.gated(torch.cat([*first.values()], 1))
    lost = {
        name: [
            view.gated(torch.cat([*{**first, name: inputs @ weight.T}.values()], 1)) - hidden for weight in narrow[name]
        ]
        for name in first
    }
    damage = {name: _mean_squares(torch.cat(errors) @ down.T, len(errors)) for name, errors in lost.items()}
    damage["down"] = _mean_squares(
        torch.cat([hidden @ (weight - down).T for weight in narrow["down"]]), len(recipe.bits)
    )
    return (hidden @ down.T).numpy(), damage


def _mean_squares(errors: "torch.Tensor", parts: int) -> NDArray[np.float64]:
    """Of errors [parts * n, hidden], the mean squared length of each part's rows."""
    squares = errors.square().sum(1).double()
    return squares.reshape(parts, -1).mean(1).numpy()


def _narrowed(weight: Weight, bits: int, recipe: Recipe, matrix: Matrix) -> "torch.Tensor":
    """The weight [out, in] that is left at this width. Raises MopeqError where one is not finite."""
    import torch

    try:
        packed = quantize(weight, bits, recipe.group_size, recipe.symmetric, search=True)
    except MopeqError as error:
        raise MopeqError(f"{matrix.source} holds {error.what}", error.hint) from None
    return torch.from_numpy(dequantize(packed, bits, recipe.symmetric))
