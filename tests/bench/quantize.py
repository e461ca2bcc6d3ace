"""A whole `mopeq-hub quantize`, beside the time that auto-round's scale search would take for the same experts."""

import json
import statistics
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from rich.table import Table

from mopeq_hub.experts import Expert, Matrix
from mopeq_hub.manifest import bitmap_of
from mopeq_hub.model import Model, open_model
from tests.bench.checkpoints import nbytes
from tests.bench.rivals import Rival, searches
from tests.bench.tables import SHAPES, Settings, command, rate, table, times
from tests.bench.watch import Watched, watch

_SAMPLE_SECONDS = 20.0
_COLUMNS = ("what", "GB", "seconds", "GB/s", "peak RSS, GB", "auto-round / ours")


def quantize(settings: Settings) -> Iterator[Table]:
    yield table(
        "A whole `mopeq-hub quantize` by the defaults, start-up, profile, reading and writing included",
        _COLUMNS,
        _rows(settings),
        "auto-round: its scale search of the routed experts alone, each at the width of the same bit map, in "
        f"proportion to a sample that took at least {_SAMPLE_SECONDS:.0f} s; neither packed nor written. Target: 100x.",
    )


def _rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    source = settings.medium
    with settings.scratch() as scratch:
        # What was compiled for another checkpoint serves here too.
        _run(SHAPES, scratch / "first", settings)
        runs = [_run(source, scratch / f"turn-{turn}", settings) for turn in range(settings.turns)]
        manifest = json.loads((scratch / "turn-0" / "repo" / "mopeq.json").read_text("utf-8"))
    seconds = statistics.median(run.seconds for run in runs)
    peak = f"{max(run.rss for run in runs) / 1e9:.2f}"
    yield "mopeq-hub quantize", f"{nbytes(source) / 1e9:.2f}", f"{seconds:.1f}", rate(nbytes(source), seconds), peak, ""
    model = open_model(str(source))
    widths = bitmap_of(manifest).bits
    estimates = list(_estimates(model, widths, 0.5 if settings.small else _SAMPLE_SECONDS))
    for bits, share, taken in estimates:
        yield f"auto-round, {bits} bits", f"{share / 1e9:.2f}", f"{taken:.0f}", rate(share, taken), "", ""
    share, taken = (sum(column) for column in list(zip(*estimates, strict=True))[1:])
    yield (
        "auto-round, all experts",
        f"{share / 1e9:.2f}",
        f"{taken:.0f}",
        rate(share, taken),
        "",
        times(taken / seconds),
    )


def _run(source: Path, place: Path, settings: Settings) -> Watched:
    """With nothing known of the model before."""
    place.mkdir()
    arguments = ["quantize", str(source), str(place / "repo"), "--json"]
    run = watch(command(arguments), settings.environment(place / "home"), [place], place, float("inf"))
    if run.status != 0:
        raise RuntimeError(run.outcome)
    return run


def _estimates(
    model: Model, widths: Mapping[tuple[Expert, str], int], enough: float
) -> Iterator[tuple[int, int, float]]:
    """For each width: the bytes of its experts, and the seconds that they would take."""
    [rival] = [rival for rival in searches() if rival.name == "scale search"]
    for bits in sorted(set(widths.values())):
        matrices = [
            matrix
            for expert, group in model.layout.experts.items()
            for matrix in group
            if widths[expert, str(matrix.projection)] == bits
        ]
        share = sum(_nbytes(matrix) for matrix in matrices)
        taken, done = _sample(rival, model, matrices, bits, enough / len(set(widths.values())))
        yield bits, share, taken * share / done


def _sample(rival: Rival, model: Model, matrices: list[Matrix], bits: int, enough: float) -> tuple[float, int]:
    """Seconds and bytes of as many of them as it takes."""
    rival(torch.ones(32, 64), bits)
    taken, done = 0.0, 0
    for matrix in matrices:
        weight = torch.from_numpy(matrix.read(model.checkpoint).float32())
        started = time.perf_counter()
        rival(weight, bits)
        taken, done = taken + time.perf_counter() - started, done + _nbytes(matrix)
        if taken >= enough:
            break
    return taken, done


def _nbytes(matrix: Matrix) -> int:
    rows, columns = matrix.shape
    return 2 * rows * columns
