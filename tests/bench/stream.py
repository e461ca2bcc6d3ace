"""A checkpoint of the size of DeepSeek-VL2-tiny: time, memory and disk, beside auto-round's two ways."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from tests.bench.checkpoints import SMALL, nbytes, write
from tests.bench.loopback import SOURCE, served
from tests.bench.tables import Settings, command, table, times
from tests.bench.watch import Watched, watch

_RIVALS = {"auto-round RTN, 4 bits": "rtn", "auto-round model-free, 4 bits": "model-free"}
_COLUMNS = ("what", "seconds", "peak RSS, GB", "anonymous, GB", "peak disk, GB", "time", "RSS", "disk", "outcome")


def stream(settings: Settings) -> Iterator[Table]:
    with settings.scratch() as scratch:
        source = write(scratch / "source", settings.full)
        _warm(scratch, settings)
        yield table(
            f"LLaVA over deepseek_v2 of DeepSeek-VL2-tiny's sizes, {nbytes(source) / 1e9:.2f} GB",
            _COLUMNS,
            _rows(source, scratch, settings),
            "Memory of all processes together; RSS counts mapped files. Disk beside the source; where a Hub is the "
            "source, with what passes through. time, RSS, disk: divided by ours.",
        )


def _rows(source: Path, scratch: Path, settings: Settings) -> Iterator[tuple[str, ...]]:
    ours = _watched(_ours(source), scratch, settings, float("inf"))
    yield "mopeq-hub quantize", *_figures(ours, ours)
    if settings.publish:
        yield "mopeq-hub publish, Hub to Hub", *_figures(_published(source, scratch, settings), ours)
    if settings.rivals:
        for title, name in _RIVALS.items():
            rival = _watched(_program(name, str(source), "repo"), scratch, settings, settings.limit)
            yield title, *_figures(rival, ours)


def _warm(scratch: Path, settings: Settings) -> None:
    """What compiles and keeps compiled code, all of them, does so before it is timed."""
    small = write(scratch / "small", SMALL)
    programs = [_program(name, str(small), "repo") for name in _RIVALS.values() if settings.rivals]
    for arguments in [_ours(small), *programs]:
        _watched(arguments, scratch, settings, settings.limit)


def _ours(source: Path) -> list[str]:
    return command(["quantize", str(source), "repo", "--json"])


def _watched(arguments: list[str], scratch: Path, settings: Settings, limit: float) -> Watched:
    """In a folder of its own, which holds all that it leaves and is gone afterwards."""
    place = scratch / "place"
    place.mkdir()
    try:
        compiled = {"TORCHINDUCTOR_CACHE_DIR": str(scratch / "compiled")}
        environment = {**settings.environment(place / "home"), "TMPDIR": str(place), **compiled}
        return watch(arguments, environment, [place], place, limit)
    finally:
        shutil.rmtree(place)


def _published(source: Path, scratch: Path, settings: Settings) -> Watched:
    """From a Hub on loopback to the same, the Hub in a process of its own."""
    place = scratch / "place"
    place.mkdir()
    own = settings.environment(place / "home")
    try:
        with served(scratch / "hub", place / "hf", source, own) as client:
            environment = {**client, "MOPEQ_HOME": own["MOPEQ_HOME"], "TMPDIR": str(place)}
            return watch(_program("publish", SOURCE, "alice/target"), environment, [place], place, settings.limit)
    finally:
        shutil.rmtree(place)
        shutil.rmtree(scratch / "hub", ignore_errors=True)


def _program(name: str, source: str, target: str) -> list[str]:
    return [sys.executable, "-m", "tests.bench.programs", name, source, target]


def _figures(run: Watched, ours: Watched) -> tuple[str, ...]:
    # What was stopped had not come to its peaks, perhaps, and certainly not to its end.
    least = ">" if run.stopped else ""
    peaks = (f"{least}{peak / 1e9:.2f}" for peak in (run.rss, run.anonymous, run.disk))
    ratios = (run.seconds / ours.seconds, run.rss / ours.rss, run.disk / ours.disk)
    shown = ("", "", "") if run is ours else tuple(least + times(ratio) for ratio in ratios)
    return f"{least}{run.seconds:.1f}", *peaks, *shown, run.outcome
