"""`python -m tests.bench.answering HOW FOLDER TOKENS`: a model is loaded and answers; what it took, as JSON.

HOW: `original` and `auto-round`, by plain from_pretrained; `load`, the runtime. With a fourth argument, ORIGINAL, both
are held at once and take turns, token by token, so that whatever else the machine does hits both; how many times as
long the original took, medians of all turns.
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


def main(how: str, folder: str, tokens: str, original: str | None = None) -> None:
    torch.manual_seed(0)
    if original is not None:
        print(json.dumps(_in_turns([_loader("original")(original), _loader(how)(folder)], int(tokens))))
        return
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
    long = torch.randint(10, model.config.text_config.vocab_size, (1, _PREFILL))
    prefill = statistics.median(_seconds(lambda: model(input_ids=long, use_cache=True), 3))
    return {"prefill": prefill, "token": _after_warming(_seconds(_answering(model), tokens + _WARMING))}


@torch.inference_mode()
def _experts(model: Any, tokens: int) -> float:
    """Seconds that the experts of all layers take for a token, each time others."""
    return _after_warming(_seconds(_experts_of(model, tokens + _WARMING), tokens + _WARMING))


@torch.inference_mode()
def _in_turns(models: list[Any], tokens: int) -> dict[str, float]:
    ways = {
        "experts": [_experts_of(model, tokens + _WARMING) for model in models],
        "token": [_answering(model) for model in models],
    }
    found = {}
    for name, runs in ways.items():
        turns = [[_seconds(run, 1)[0] for run in runs] for _ in range(tokens + _WARMING)]
        found[name] = statistics.median(first / other for first, other in turns[_WARMING:])
    return found


def _answering(model: Any) -> Callable[[], None]:
    """What answers a token more each time, after a prompt of 16."""
    state = model(input_ids=torch.randint(10, model.config.text_config.vocab_size, (1, 16)), use_cache=True)

    def answer() -> None:
        nonlocal state
        following = state.logits[:, -1:].argmax(-1)
        state = model(input_ids=following, past_key_values=state.past_key_values, use_cache=True)

    return answer


def _experts_of(model: Any, most: int) -> Callable[[], None]:
    """What has other experts of all layers compute each time, up to so often."""
    config, modules = model.config.text_config, dict(model.named_modules())
    layers = [module for name, module in modules.items() if name.endswith("mlp.experts")]
    states = torch.randn(1, config.hidden_size, dtype=model.dtype)
    size = config.num_experts_per_tok
    weights = torch.full((1, size), 1 / size, dtype=model.dtype)
    chosen = iter([torch.randperm(config.num_experts)[None, :size] for _ in range(most * len(layers))])

    def answer() -> None:
        for layer in layers:
            layer(states, next(chosen), weights)

    return answer


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
