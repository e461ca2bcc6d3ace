"""How often the router picks each expert: the activation frequency that MoPEQ (arXiv 2509.02512) compares with.

An expert's sensitivity is the share of all choices of its layer's router that fell on it, of the tokens of questions
and answers alike, times the number of experts, so that 1 is average. It costs one pass of the model over its inputs.
"""

from typing import Any

import torch

from mopeq_hub.calibration import numbers_of
from mopeq_hub.experts import Expert
from mopeq_hub.model import Model
from mopeq_hub.questions.inputs import MAX_ROWS, Row, placed
from mopeq_hub.sensitivity.watching import Watch


class Collector:
    """Counts the router's choices; each group of rows counts the same."""

    def __init__(self, model: Model, live: Any, job: dict[str, Any]) -> None:
        self._live, self._experts = live, list(model.layout.experts)
        self._watch = Watch(live, model.layout)
        self._counts: list[dict[Expert, int]] = []

    def begin(self) -> None:
        self._counts.append(dict.fromkeys(self._experts, 0))

    def rows_at_once(self, rows: list[Row]) -> int:
        return MAX_ROWS

    def run(self, part: list[Row], inputs: dict[str, torch.Tensor]) -> None:
        given = placed(inputs, self._live.dtype, self._live.device)
        self._watch.begin()
        with torch.inference_mode():
            self._live(**given, use_cache=False)
        for seen in self._watch.passes:
            for index in numbers_of(seen.chosen):
                self._counts[-1][Expert(seen.held.layer, index)] += int((seen.chosen == index).sum())

    def result(self) -> dict[str, Any]:
        """By layer, one number an expert."""
        layers: dict[str, list[float]] = {}
        for expert in self._experts:
            layers.setdefault(str(expert.layer), []).append(sum(self._share(counts, expert) for counts in self._counts))
        return {"experts": {layer: [value / len(self._counts) for value in row] for layer, row in layers.items()}}

    def _share(self, counts: dict[Expert, int], expert: Expert) -> float:
        layer = [count for other, count in counts.items() if other.layer == expert.layer]
        return counts[expert] * len(layer) / (sum(layer) or 1)
