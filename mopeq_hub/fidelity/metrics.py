"""The figures of the proof, from the logits of both models: one set of formulas, however the logits came about."""

from typing import Any

import numpy as np
import torch

from mopeq_hub.questions.inputs import Row


def starts(rows: list[Row]) -> np.ndarray:
    """Where each row's answer tokens begin among all answer tokens, and the total at the end."""
    return np.concatenate([[0], np.cumsum([row.length - row.prompt for row in rows])])


class Comparison:
    """Collects both models' logits row by row, in any order, and keeps one number an answer token of each figure."""

    def __init__(self, rows: list[Row]) -> None:
        self._starts = starts(rows)
        self._divergences, self._agreements, self._losses, self._original_losses = (
            np.zeros(self._starts[-1]) for _ in range(4)
        )

    def add(self, row: Row, original: torch.Tensor, published: torch.Tensor) -> None:
        """Take one row's answer logits, both float32 [answer tokens, vocabulary]."""
        place = slice(self._starts[row.number], self._starts[row.number + 1])
        ids = row.ids[0, row.prompt :]
        ours, theirs = (torch.log_softmax(logits.double(), -1) for logits in (published, original))
        self._divergences[place] = (theirs.exp() * (theirs - ours)).sum(-1).numpy()
        self._agreements[place] = (theirs.argmax(-1) == ours.argmax(-1)).numpy()
        for losses, logits in ((self._losses, published), (self._original_losses, original)):
            losses[place] = torch.nn.functional.cross_entropy(logits, ids, reduction="none").numpy()

    def result(self) -> dict[str, Any]:
        """KL(original || published) per answer token in nats, agreement of the most likely token, mean losses."""
        return {
            "tokens": int(self._starts[-1]),
            "loss": float(self._losses.mean()),
            "original_loss": float(self._original_losses.mean()),
            "kl_mean": float(self._divergences.mean()),
            "kl_p99": float(np.quantile(self._divergences, 0.99)),
            "top1_agreement": float(self._agreements.mean()),
        }
