"""A model's answer logits on rows of questions: kept in a file, and those of another model compared with them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mopeq_hub.fidelity.metrics import Comparison, starts
from mopeq_hub.questions.inputs import Row, answer_logits, answer_options, batches, placed

Told = Callable[[int], None]
"""Is told the number of rows as they are finished."""


def write_logits(model: Any, rows: list[Row], path: Path, told: Told = lambda rows: None) -> dict[str, Any]:
    """Keep the original's answer logits in a .npy file [answer tokens, vocabulary], rows in the questions' order."""
    begins = starts(rows)
    kept: np.memmap | None = None
    for row, logits in forward(model, rows, told):
        if kept is None:
            shape = (int(begins[-1]), logits.shape[-1])
            kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        kept[begins[row.number] : begins[row.number + 1]] = logits.numpy()
    assert kept is not None
    kept.flush()
    return {"tokens": int(begins[-1])}


def compare(model: Any, rows: list[Row], path: Path, told: Told = lambda rows: None) -> dict[str, Any]:
    """The figures of `Comparison`, the original's logits read from `path`.

    Raises ValueError where that holds those of other answer tokens.
    """
    begins, comparison = starts(rows), Comparison(rows)
    original = np.load(path, mmap_mode="r")
    if original.shape[0] != begins[-1]:
        raise ValueError("the published processor makes other tokens of the same questions than the original's")
    for row, logits in forward(model, rows, told):
        place = slice(begins[row.number], begins[row.number + 1])
        comparison.add(row, torch.from_numpy(np.array(original[place])), logits)
    return comparison.result()


def forward(model: Any, rows: list[Row], told: Told = lambda rows: None) -> Iterator[tuple[Row, torch.Tensor]]:
    """Each row with the float32 logits [answer tokens, vocabulary] that predict its answer."""
    for part, inputs in batches(rows):
        with torch.inference_mode():
            given = placed(inputs, model.dtype, model.device)
            logits = model(**given, use_cache=False, **answer_options(model, part[0])).logits
        for position, row in enumerate(part):
            yield row, answer_logits(logits[position], row).cpu()
        told(len(part))
