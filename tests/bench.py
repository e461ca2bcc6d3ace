"""`make bench`: what the bundled model loses under each bit map, and how fast experts are quantized beside auto-round.

Run on idle cores. Timings are medians over repeated turns, ours and the rival's one after the other; quote the ratios.
"""

import json
import logging
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from mopeq_hub import Recipe, pipeline
from mopeq_hub.model import open_model
from mopeq_hub.quantization.packing import dequantize, quantize
from mopeq_hub.recipe import CALIBRATED
from mopeq_hub.report import number, percent, size

SHAPES = Path(__file__).parent / "assets" / "shapes-moe-vl"
VARIANTS = {
    "uniform 2 bits": Recipe(bits=(2,)),
    "uniform 3 bits": Recipe(bits=(3,)),
    "uniform 4 bits": Recipe(bits=(4,)),
    "MoPEQ, model-wise": Recipe(scope="model"),
    "MoPEQ, layer-wise": Recipe(scope="layer"),
}
QUANTIZERS: tuple[Literal["search", "gptq", "signround"], ...] = ("search", "gptq", "signround")
TURNS = 5


def main() -> None:
    console = Console(width=110)
    console.print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    console.print(_table("Bundled model, 400 questions", COLUMNS, fidelity_rows()))
    console.print(
        _table("Bundled model, one bit map, calibrated on other questions", CALIBRATED_COLUMNS, calibrated_rows())
    )
    console.print(_table("Quantizing experts, groups of 64, symmetric", SPEED_COLUMNS, speed_rows()))


COLUMNS = ("bit map", "size", "expert bpw", "KL, nats", "KL, 99th percentile", "top-1", "accuracy")
CALIBRATED_COLUMNS = ("quantizer", "seconds", "KL, nats", "of the search's", "KL, 99th percentile", "top-1", "accuracy")
SPEED_COLUMNS = ("bits", "ours, MB/s", "auto-round, MB/s", "ratio", "error / auto-round's")


def fidelity_rows() -> Iterator[tuple[str, ...]]:
    """Each bit map quantized, loaded as a user loads it, and measured."""
    for name, recipe in VARIANTS.items():
        with tempfile.TemporaryDirectory() as scratch:
            repo = pipeline.quantize(str(SHAPES), Path(scratch) / "repo", recipe)
            measured = pipeline.evaluate(repo.folder, SHAPES / "eval.jsonl", compare=False)
        if name == next(iter(VARIANTS)):
            original = open_model(str(SHAPES)).checkpoint.nbytes
            yield "original", size(original), "16", "0", "0", "100%", percent(measured["accuracy"]["original"])
        yield (
            name,
            size(repo.manifest["sizes"]["published_bytes"]),
            f"{repo.manifest['sizes']['experts_bpw']:.2f}",
            number(measured["kl"]["mean"]),
            number(measured["kl"]["p99"]),
            percent(measured["top1_agreement"]),
            percent(measured["accuracy"]["published"]),
        )


def calibrated_rows() -> Iterator[tuple[str, ...]]:
    """The default bit map by each quantizer, on questions that none of them was calibrated on.

    Seconds are of `quantize`, the process that runs the model included, with the sensitivities known.
    """
    with tempfile.TemporaryDirectory() as scratch:
        held_out = _held_out(Path(scratch))
        pipeline.quantize(str(SHAPES), Path(scratch) / "first", Recipe())
        searched = 0.0
        for name in QUANTIZERS:
            recipe = Recipe(quantizer=name)
            calibration = SHAPES / "calibration.jsonl" if name in CALIBRATED else None
            started = time.perf_counter()
            repo = pipeline.quantize(str(SHAPES), Path(scratch) / name, recipe, calibration=calibration)
            seconds = time.perf_counter() - started
            measured = pipeline.evaluate(repo.folder, held_out, compare=False)
            kl = measured["kl"]["mean"]
            searched = kl if name == "search" else searched
            yield (
                name,
                f"{seconds:.1f}",
                number(kl),
                f"{kl / searched:.2f}",
                number(measured["kl"]["p99"]),
                percent(measured["top1_agreement"]),
                percent(measured["accuracy"]["published"]),
            )


def _held_out(scratch: Path) -> Path:
    """The questions of eval.jsonl that are not among those of calibration.jsonl; no picture is in both."""
    known = {_question(line) for line in (SHAPES / "calibration.jsonl").read_text("utf-8").splitlines()}
    lines = [line for line in (SHAPES / "eval.jsonl").read_text("utf-8").splitlines() if _question(line) not in known]
    placed = [{**entry, "image": entry["image"] and str(SHAPES / entry["image"])} for entry in map(json.loads, lines)]
    (scratch / "held-out.jsonl").write_text("\n".join(map(json.dumps, placed)), "utf-8")
    return scratch / "held-out.jsonl"


def _question(line: str) -> tuple[str | None, str]:
    entry = json.loads(line)
    return entry["image"], entry["question"]


def speed_rows() -> Iterator[tuple[str, ...]]:
    """The search of the first 24 experts' gate projections, ours with packing, beside auto-round's scale search."""
    from auto_round.data_type.int import quant_tensor_opt_rtn_sym

    logging.disable(logging.CRITICAL)
    model = open_model(str(SHAPES))
    experts = list(model.layout.experts.values())[:24]
    stacked = torch.cat([matrix.read(model.checkpoint).float() for group in experts for matrix in group[:1]])
    weight = stacked.numpy()
    for bits in (2, 3, 4):

        def ours(bits: int = bits) -> np.ndarray:
            return dequantize(quantize(weight, bits, 64, True, True), bits, True)

        def rival(bits: int = bits) -> Any:
            return quant_tensor_opt_rtn_sym(stacked, bits=bits, group_size=64)[0].numpy()

        errors = [float(np.linalg.norm(run() - weight)) for run in (ours, rival)]
        mine, theirs = _in_turns(lambda bits=bits: quantize(weight, bits, 64, True, True), rival)  # type: ignore[misc]
        rates = [2 * weight.size / 1e6 / seconds for seconds in (mine, theirs)]
        yield (
            str(bits),
            f"{rates[0]:.0f}",
            f"{rates[1]:.2f}",
            f"{rates[0] / rates[1]:.0f}x",
            f"{errors[0] / errors[1]:.4f}",
        )


def _in_turns(one: Callable[[], Any], other: Callable[[], Any]) -> tuple[float, float]:
    """Median seconds of two functions, run in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for run, taken in zip((one, other), seconds, strict=True):
            started = time.perf_counter()
            run()
            taken.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def _table(title: str, columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    main()
