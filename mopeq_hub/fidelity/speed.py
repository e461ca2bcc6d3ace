"""The two ways to load a publication, plain from_pretrained and the runtime: that both answer alike, and how fast."""

import time
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from mopeq_hub.errors import MopeqError
from mopeq_hub.families.speaking import speaking
from mopeq_hub.questions.inputs import Row, placed
from mopeq_hub.runtime.loading import accelerate, change_dtype
from mopeq_hub.workplace import processor

_TOKENS, _SECONDS = 9, 10.0
"""How many tokens are timed at most, and how long."""
_ALIKE = 1e-3
"""Of the largest logit, in float32: far more than another order of sums changes."""


def go_over_to_the_runtime(model: Any, row: Row, float32: bool, timed: bool) -> dict[str, Any] | None:
    """Accelerate a model that plain from_pretrained loaded; how fast it was and is, where that is timed.

    row: a question without its answer. float32: whether the model is to compute in that afterwards; then both ways are
    compared. Raises MopeqError where they do not answer alike.
    """
    dtype, before, speed = model.dtype, None, {}
    if timed:
        speed["plain"] = _tokens_per_second(model, row)
    if float32:
        change_dtype(model, torch.float32)
        before = _logits(model, row)
    # The model is made anew, so that what was arranged of it has to be arranged again.
    speaking(accelerate(model))
    if before is not None:
        _check_alike(_logits(model, row), before)
    if not timed:
        return None
    change_dtype(model, dtype)
    speed["runtime"] = _tokens_per_second(model, row)
    if float32:
        change_dtype(model, torch.float32)
    return {
        **speed,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "processor": processor(),
    }


def _check_alike(found: torch.Tensor, expected: torch.Tensor) -> None:
    distance = float((found - expected).abs().max() / expected.abs().max())
    if not distance < _ALIKE:
        raise MopeqError(
            f"the runtime's logits are {distance:.2g} of the largest one away from those of plain from_pretrained",
            "nothing was published; report the model's name",
        )


@torch.inference_mode()
def _logits(model: Any, row: Row) -> torch.Tensor:
    logits: torch.Tensor = model(**placed(row.inputs, model.dtype)).logits
    return logits.float()


@torch.inference_mode()
def _tokens_per_second(model: Any, row: Row) -> float:
    """Of tokens after the first, so that the prompt does not count."""
    clock = _Clock()
    inputs = placed(row.inputs, model.dtype)
    model.generate(
        **inputs, max_new_tokens=_TOKENS, min_new_tokens=_TOKENS, max_time=_SECONDS, do_sample=False, streamer=clock
    )
    asked, first, *later = clock.times
    return len(later) / (later[-1] - first) if later else 1 / (first - asked)


class _Clock(BaseStreamer):
    """When the prompt was given, and each token after it was there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass
