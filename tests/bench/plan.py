"""`mopeq-hub plan` of large models of which nothing is there but config and headers, beside importing what it needs."""

import resource
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.source import open_source
from tests.bench.tables import Settings, command, table
from tests.bench.watch import Watched, watch
from tests.families.headers import LARGE, headers_of

_COLUMNS = ("what", "original, GB", "tensors", "seconds, least", "median", "of CPU", "peak RSS, GB")
_IMPORTS = "import torch, transformers.modeling_utils"
_SMALL = "ERNIE-4.5-VL-28B"


def plan(settings: Settings) -> Iterator[Table]:
    yield table(
        "A whole `mopeq-hub plan` of a folder with config.json and headers alone",
        _COLUMNS,
        _rows(settings),
        "Wall clock from the start of the process to its end, with `--json`. Target: under 5 seconds and 1 GB each, on "
        "two idle cores.",
    )


def _rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    names = [_SMALL] if settings.small else list(LARGE)
    with settings.scratch() as scratch:
        commands = {_IMPORTS: [sys.executable, "-c", _IMPORTS]}
        for name in names:
            (scratch / name).mkdir()
            commands[name] = command(["plan", str(headers_of(scratch / name, *LARGE[name])), "--json"])
        # They take turns, so that a busy minute hits all of them; the first is there to have files in memory.
        turns = [
            {name: _run(words, scratch, settings) for name, words in commands.items()}
            for _ in range(1 + settings.turns)
        ]
        for name in commands:
            runs, computing = zip(*(turn[name] for turn in turns[1:]), strict=True)
            seconds = [run.seconds for run in runs]
            said = _size(scratch / name) if name in LARGE else ("", "")
            taken = (min(seconds), statistics.median(seconds), min(computing), max(run.rss for run in runs) / 1e9)
            yield name, *said, *(f"{number:.2f}" for number in taken)


def _run(words: list[str], scratch: Path, settings: Settings) -> tuple[Watched, float]:
    """With the seconds that the cores computed, which others' work changes less than the clock's."""
    before = _computed()
    run = watch(words, settings.environment(scratch / "home"), [], scratch, float("inf"))
    if run.status != 0:
        raise RuntimeError(run.outcome)
    return run, _computed() - before


def _computed() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def _size(folder: Path) -> tuple[str, str]:
    checkpoint = Checkpoint(open_source(str(folder)))
    return f"{checkpoint.nbytes / 1e9:,.0f}", f"{len(checkpoint.tensors):,}"
