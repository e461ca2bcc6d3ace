"""The second-order KL of each projection's rounding, by the gradients that the model's own uncertainty asks for.

To second order KL(p || p_q) = 1/2 E (g . dy)^2, where dy is what quantizing a weight adds to a layer's output and g g^T
averages to the Fisher information of the model's answer (Martens, JMLR 21, 2020, section 5). Commonly g is the gradient
of the log-likelihood of labels drawn from p; but where a model is sure, the labels that matter are hardly ever drawn.
So g is the gradient of z . logits with z = sqrt(p) e - p (sqrt(p) . e), e of random signs: z z^T averages to
diag(p) - p p^T as the labels' does, and every label takes part in every draw. Signs are drawn for each token of an
answer, so one backward pass gives, for all experts at once, an estimate whose cross terms vanish in expectation. `dy`
is not approximated: the expert is computed with one projection quantized to each width.

A few rows hold most of the sum, and which ones is chance; so a row whose damage over all experts is t does not count t
but t to the power `_COUNTS`. On trained models that more than halved the KL of the maps that few questions gave, where
the power, between 1/5 and 1/2, made no difference.

Linear layers outside the experts are measured by the same sum where they compete with them for bits. One that only
chooses, such as which tokens are attended to, no gradient reaches: it counts by weight as much as that of them which
counts most.

It costs a forward pass of the model, `DRAWS` backward passes, and a forward pass of what is measured for each width.
"""

from typing import Any

import numpy as np
import torch

from mopeq_hub.calibration import LiveExpert, Rounded, numbers_of
from mopeq_hub.experts import Expert, Matrix
from mopeq_hub.families.speaking import head_of
from mopeq_hub.model import Model
from mopeq_hub.questions.inputs import MAX_ROWS, Row, answer_options, placed
from mopeq_hub.sensitivity.watching import Flow, Pass, Watch

GRAPH_BYTES = 1_000_000_000
_KEPT = 4
"""How often an output is in memory at a time, roughly: itself, what is made of it, and gradients."""
DRAWS = 4
"""How often signs are drawn for each row."""
_COUNTS = 1 / 3


class Collector:
    """Sums up each row's squared g . dy by projection and width."""

    def __init__(self, model: Model, live: Any, job: dict[str, Any]) -> None:
        self._live, self._layout, self._widths = live, model.layout, job["widths"]
        self._experts = model.layout.experts
        self._modules = {module: live.get_submodule(module.name) for module in model.layout.modules}
        self._rest = {matrix.name: matrix for matrix in model.layout.rest if matrix.name in job["rest"]}
        self._watch = Watch(live, model.layout, self._rest, gradients=True)
        self._place = {matrix.name: place for place, matrix in enumerate([*model.layout.routed, *self._rest.values()])}
        self._generator = torch.Generator().manual_seed(job["seed"])
        self._rounded = Rounded(model, job["group_size"], job["symmetric"], search=True)
        self._groups: list[_Sums] = []

    def begin(self) -> None:
        self._groups.append(_Sums(len(self._place), len(self._widths)))

    def rows_at_once(self, rows: list[Row]) -> int:
        """As many as keep the graph that gradients go through within `GRAPH_BYTES`, as far as layers tell."""
        layout = self._layout
        if len(layout.modules) > len(layout.modules_of):
            # Each module is given some of the tokens, and which row they are of is not known.
            return 1
        expert = max(sum(matrix.shape[0] for matrix in matrices) for matrices in self._experts.values())
        width = sum(matrix.shape[0] for matrix in layout.rest)
        width += layout.experts_per_token * expert * len(layout.modules)
        vocabulary = head_of(self._live).weight.shape[0]
        numbers = max(row.tokens * width + (row.length - row.prompt) * vocabulary for row in rows)
        return max(1, min(MAX_ROWS, GRAPH_BYTES // (4 * _KEPT * numbers)))

    def run(self, part: list[Row], inputs: dict[str, torch.Tensor]) -> None:
        given = placed(inputs, self._live.dtype, self._live.device)
        self._watch.begin()
        logits = self._live(**given, use_cache=False, **answer_options(self._live, part[0])).logits
        first = part[0].prompt - part[0].length - 1
        logits = logits[:, first:-1].float()
        passes, flows = list(self._watch.passes), dict(self._watch.flows)
        if len(part) > 1 and any(each.numbers is None for each in passes):
            # Which row a token is of cannot be told.
            for row in part:
                self.run([row], row.inputs)
            return
        outputs = [*(each.output for each in passes), *(each.output for each in flows.values())]
        drawn = [
            torch.autograd.grad(
                self._drawn(logits),
                outputs,
                retain_graph=draw + 1 < DRAWS,
                allow_unused=True,
                materialize_grads=True,
            )
            for draw in range(DRAWS)
        ]
        gradients = (torch.stack([each.flatten(0, -2) for each in of]) for of in zip(*drawn, strict=True))
        squares = np.zeros((DRAWS, len(part), len(self._place), len(self._widths)), np.float32)
        with torch.no_grad():
            for each in passes:
                slopes = next(gradients)
                for index in numbers_of(each.chosen):
                    self._add_expert(squares, index, each, slopes)
            for name, flow in flows.items():
                self._add_linear(squares, self._rest[name], flow, next(gradients))
        self._groups[-1].add(squares.reshape(-1, *squares.shape[2:]), DRAWS * logits.shape[0] * logits.shape[1])

    def _drawn(self, logits: torch.Tensor) -> torch.Tensor:
        """z . logits, z drawn for each token of logits [rows, tokens, vocabulary]."""
        chances = torch.softmax(logits.detach(), -1)
        signs = torch.randint(0, 2, logits.shape, generator=self._generator, dtype=torch.float32) * 2 - 1
        drawn = chances.sqrt() * signs.to(logits.device)
        return ((drawn - chances * drawn.sum(-1, keepdim=True)) * logits).sum()

    def _add_expert(
        self,
        squares: np.ndarray,
        index: int,
        seen: Pass,
        gradients: torch.Tensor,
    ) -> None:
        """Put the squares of one expert's projections into [draws, rows, matrices, widths]."""
        held = seen.held
        expert = LiveExpert(self._modules[held], held, index)
        places, states, weights = seen.of(index)
        rows = seen.rows_of(places, squares.shape[1]).cpu()
        narrowed, down = expert.narrowed(states), expert.weight(1)
        hidden = expert.gated(narrowed)
        slope = expert.slope_before(gradients[:, places] * weights, hidden)
        # What a change of the hidden states is worth is the same for each width.
        inner = slope @ down
        stacked = list(held.form.projections)
        for matrix in self._experts[Expert(held.layer, index)]:
            for place, bits in enumerate(self._widths):
                weight = self._rounded.weight(matrix, bits).to(states)
                if matrix.projection == "down":
                    change = (slope * torch.nn.functional.linear(hidden, weight - down)).sum(-1)
                else:
                    first = stacked.index(str(matrix.projection)) * matrix.shape[0]
                    mine = slice(first, first + matrix.shape[0])
                    lost = weight - expert.weight(0)[mine]
                    changed = narrowed.clone()
                    changed[:, mine] += torch.nn.functional.linear(states, lost)
                    change = (inner * (expert.gated(changed) - hidden)).sum(-1)
                self._put(squares, matrix, place, rows, change)

    def _add_linear(self, squares: np.ndarray, matrix: Matrix, seen: Flow, gradients: torch.Tensor) -> None:
        """Put the squares of a linear layer beside the experts into [draws, rows, matrices, widths]."""
        weight = self._live.get_submodule(matrix.name).weight
        rows = torch.arange(len(seen.states)) // (len(seen.states) // squares.shape[1])
        for place, bits in enumerate(self._widths):
            lost = self._rounded.weight(matrix, bits).to(seen.states) - weight
            change = (gradients * torch.nn.functional.linear(seen.states, lost)).sum(-1)
            self._put(squares, matrix, place, rows, change)

    def _put(self, squares: np.ndarray, matrix: Matrix, place: int, rows: torch.Tensor, change: torch.Tensor) -> None:
        """Square the changes [draws, tokens] of a matrix at a width, summed up row by row."""
        sums = torch.zeros(DRAWS, squares.shape[1]).index_add_(1, rows, change.float().cpu())
        squares[:, :, self._place[matrix.name], place] = sums.square().numpy()

    def result(self) -> dict[str, Any]:
        """By matrix, the cost of each width in nats a token: the mean of the groups, all on the scale of the first."""
        found = [group.costs() for group in self._groups]
        scale = found[0].sum()
        costs = sum(each * (scale / (each.sum() or 1.0)) for each in found) / len(found)
        self._fill(costs)
        return {
            "costs": {name: [float(f"{value:.4g}") for value in costs[place]] for name, place in self._place.items()}
        }

    def _fill(self, costs: np.ndarray) -> None:
        """Give the linear layers [matrices, widths] that no gradient reached the greatest cost by weight."""
        places = np.array([self._place[name] for name in self._rest], int)
        sizes = np.array([matrix.size for matrix in self._rest.values()], float)[:, None]
        unknown = costs[places].sum(1) == 0
        if unknown.any():
            costs[places[unknown]] = sizes[unknown] * (costs[places] / sizes).max(0)


class _Sums:
    """Sums over the rows of one group, [matrices, widths]."""

    def __init__(self, matrices: int, widths: int) -> None:
        self._whole, self._counted = (np.zeros((matrices, widths)) for _ in range(2))
        self._tokens, self._reference = 0, widths // 2

    def add(self, squares: np.ndarray, tokens: int) -> None:
        """Rows of squares [rows, matrices, widths], drawn for so many tokens."""
        totals = squares[:, :, self._reference].sum(1, dtype=np.float64)
        shares = np.where(totals > 0, np.maximum(totals, np.finfo(float).tiny) ** (_COUNTS - 1), 0)
        self._whole += squares.sum(0, dtype=np.float64)
        self._counted += np.einsum("r,rmw->mw", shares, squares, dtype=np.float64)
        self._tokens += tokens

    def costs(self) -> np.ndarray:
        """Half the mean square a token; the sum at the middle width is that of all rows counted in full."""
        whole, counted = (sums[:, self._reference].sum() for sums in (self._whole, self._counted))
        return self._counted * (whole / (counted or 1.0)) / (2 * self._tokens)
