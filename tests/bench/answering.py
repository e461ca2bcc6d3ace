"""`python -m tests.bench.answering HOW FOLDER TOKENS`: a model is loaded and answers; what it took, as JSON.

HOW: `original` and `auto-round`, by plain from_pretrained; `load`, the runtime.
"""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

_PREFILL = 512
_WARMING = 3
_ENOUGH = 30.0
"""Seconds after which nothing is repeated."""


def main(how: str, folder: str, tokens: str) -> None:
    torch.manual_seed(0)
    process = psutil.Process()
    load = _loader(how)
    gc.collect()
    before = process.memory_info().rss
    started = time.perf_counter()
    model = load(folder)
    loaded = time.perf_counter() - started
    taken = {"load": loaded, **_answered(model, int(tokens)), "experts": _experts(model, int(tokens))}
    taken["memory"] = process.memory_info().rss - before
    print(json.dumps(taken))


def _loader(how: str) -> Callable[[str], Any]:
    """What loads a folder; everything it needs is imported, and compiled, before it is timed."""
    from transformers import AutoModelForImageTextToText

    if how == "original":
        return lambda folder: AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.bfloat16)
    if how == "auto-round":
        import auto_round.inference.convert_model  # noqa: F401

        return AutoModelForImageTextToText.from_pretrained
    from mopeq_hub import load
    from mopeq_hub.kernels import jobs

    jobs.worker()
    for kind in (jobs.FIXED, jobs.FIXED + 1, jobs.UNPACKED, jobs.UNPACKED_HALVES):
        jobs.functions(kind, {2, 3, 4})
    return load


@torch.inference_mode()
def _answered(model: Any, tokens: int) -> dict[str, float]:
    """Seconds of a prompt of 512 tokens, and of each token after one of 16."""
    vocabulary = model.config.text_config.vocab_size
    long, short = (torch.randint(10, vocabulary, (1, size)) for size in (_PREFILL, 16))
    prefill = statistics.median(_seconds(lambda: model(input_ids=long, use_cache=True), 3))
    state = model(input_ids=short, use_cache=True)

    def answer() -> None:
        nonlocal state
        following = state.logits[:, -1:].argmax(-1)
        state = model(input_ids=following, past_key_values=state.past_key_values, use_cache=True)

    times = _seconds(answer, tokens + _WARMING)
    return {"prefill": prefill, "token": _after_warming(times)}


@torch.inference_mode()
def _experts(model: Any, tokens: int) -> float:
    """Seconds that the experts of all layers take for a token, each time others."""
    config, modules = model.config.text_config, dict(model.named_modules())
    layers = [module for name, module in modules.items() if name.endswith("mlp.experts")]
    states = torch.randn(1, config.hidden_size, dtype=model.dtype)
    size = config.num_experts_per_tok
    weights = torch.full((1, size), 1 / size, dtype=model.dtype)
    chosen = iter([torch.randperm(config.num_experts)[None, :size] for _ in range((tokens + _WARMING) * len(layers))])

    def answer() -> None:
        for layer in layers:
            layer(states, next(chosen), weights)

    return _after_warming(_seconds(answer, tokens + _WARMING))


def _seconds(run: Callable[[], Any], most: int) -> list[float]:
    """What it takes each time, `most` times or fewer where it is slow."""
    times: list[float] = []
    while len(times) < most and sum(times) < _ENOUGH:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return times


def _after_warming(times: list[float]) -> float:
    return statistics.median(times[_WARMING:] or times)


if __name__ == "__main__":
    main(*sys.argv[1:])
