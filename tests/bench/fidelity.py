"""What the bundled model loses under each bit map, and by each quantizer."""

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rich.table import Table

from mopeq_hub import Recipe, pipeline
from mopeq_hub.model import open_model
from mopeq_hub.recipe import CALIBRATED
from mopeq_hub.report import number, percent, size
from tests.bench.tables import SHAPES, Settings, table

VARIANTS = {
    "uniform 2 bits": Recipe(bits=(2,)),
    "uniform 3 bits": Recipe(bits=(3,)),
    "uniform 4 bits": Recipe(bits=(4,)),
    "MoPEQ, model-wise": Recipe(scope="model"),
    "MoPEQ, layer-wise": Recipe(scope="layer"),
}
QUANTIZERS: tuple[Literal["search", "gptq", "signround"], ...] = ("search", "gptq", "signround")
_COLUMNS = ("bit map", "size", "expert bpw", "KL, nats", "KL, 99th percentile", "top-1", "accuracy")
_CALIBRATED_COLUMNS = (
    "quantizer",
    "seconds",
    "KL, nats",
    "of the search's",
    "KL, 99th percentile",
    "top-1",
    "accuracy",
)


def bit_maps(settings: Settings) -> Iterator[Table]:
    yield table("Bundled model, 400 questions", _COLUMNS, _bit_map_rows())


def quantizers(settings: Settings) -> Iterator[Table]:
    title = "Bundled model, one bit map, calibrated on other questions"
    yield table(title, _CALIBRATED_COLUMNS, _quantizer_rows())


def _bit_map_rows() -> Iterator[tuple[str, ...]]:
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


def _quantizer_rows() -> Iterator[tuple[str, ...]]:
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
