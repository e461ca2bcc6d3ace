"""Commands that are watched and are not `mopeq-hub`'s: `python -m tests.bench.programs NAME SOURCE TARGET`."""

import sys
from pathlib import Path
from typing import Any

NAMES = ("rtn", "model-free", "publish")


def main(name: str, source: str, target: str) -> None:
    if name == "publish":
        _publish(source, target)
    else:
        _auto_round(source, target, name == "model-free")


def _auto_round(source: str, target: str, model_free: bool) -> None:
    """auto-round's round-to-nearest at 4 bits, groups of 64: the model loaded, or shard by shard without it."""
    from auto_round import AutoRound

    way: dict[str, Any] = {"model_free": True} if model_free else {"disable_model_free": True}
    rounding = AutoRound(
        source, scheme="W4A16", group_size=64, iters=0, disable_opt_rtn=True, device_map="cpu", low_cpu_mem_usage=True,
        **way,
    )  # fmt: skip
    rounding.quantize_and_save(target, format="auto_round")


def _publish(source: str, target: str) -> None:
    """A Hub's model to a Hub, shard by shard; asked one question without a picture."""
    from mopeq_hub import publish

    questions = Path("questions.jsonl")
    questions.write_text('{"question": "what is it?", "answer": "a shape"}\n', "utf-8")
    publish(source, target, questions=questions, compare=False, space=False, stream=True)


if __name__ == "__main__":
    main(*sys.argv[1:4])
