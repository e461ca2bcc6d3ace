"""How long a first run waits for its kernels, with nothing compiled before and with compiled code on disk."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from tests.bench.tables import Settings, table

_COLUMNS = ("of a fresh process", "nothing on disk, s", "compiled before, s")
_PROGRAM = """
import json, time
started = time.perf_counter()
import mopeq_hub.pipeline
taken = {"import of the pipeline": time.perf_counter() - started}
import numpy as np
from mopeq_hub.kernels.norm import sum_of_squares
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.packing import quantize
weight = Weight(np.full((64, 64), 0x3F80, np.uint16))
steps = {
    "first sum of squares": lambda: sum_of_squares(weight),
    "first search and pack": lambda: quantize(weight, 3, 64, True, True),
}
for name, run in steps.items():
    started = time.perf_counter()
    run()
    taken[name] = time.perf_counter() - started
print(json.dumps(taken))
"""


def compilation(settings: Settings) -> Iterator[Table]:
    title = "Start-up and first calls on bfloat16"
    yield table(title, _COLUMNS, _rows(settings), "Other stored dtypes are compiled when they are first met.")


def _rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    cold, warm = [], []
    for _ in range(1 if settings.small else settings.turns):
        with tempfile.TemporaryDirectory() as cache:
            cold.append(_timed(Path(cache), settings))
            warm.append(_timed(Path(cache), settings))
    for name in cold[0]:
        yield name, *(f"{statistics.median(turn[name] for turn in turns):.2f}" for turns in (cold, warm))
    totals = [statistics.median(sum(turn.values()) for turn in turns) for turns in (cold, warm)]
    yield "all three", *(f"{total:.2f}" for total in totals)


def _timed(cache: Path, settings: Settings) -> dict[str, float]:
    environment = {**settings.environment(cache), "NUMBA_CACHE_DIR": str(cache)}
    command = [sys.executable, "-c", _PROGRAM]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))
