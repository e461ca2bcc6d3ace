"""The profile of a checkpoint in the page cache, beside reading the same files."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.table import Table

from mopeq_hub import Recipe
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.sensitivity.run import measure
from tests.bench.checkpoints import nbytes
from tests.bench.tables import Settings, in_turns, rate, table, times

_CHUNK = 16_000_000
_COLUMNS = ("what", "GB", "seconds", "GB/s", "the profile / it")


def hessian(settings: Settings) -> Iterator[Table]:
    title = "Profile of the experts (Hessian trace, exact), files in the page cache"
    yield table(title, _COLUMNS, _rows(settings), "Target: at least half the speed of reading.")


def _rows(settings: Settings) -> Iterator[tuple[str, ...]]:
    folder, notes = settings.medium, settings.folder / "notes"
    files = sorted(folder.glob("*.safetensors"))
    model = open_model(str(folder))
    sources = {matrix.source for group in model.layout.experts.values() for matrix in group}
    measured = sum(model.checkpoint.tensors[source].nbytes for source in sources)

    def profile() -> None:
        measure(open_model(str(folder)), Recipe(), notes, Quiet())

    def pass_alone() -> None:
        measure(model, Recipe(), notes, Quiet())

    readers: dict[str, Callable[[], None]] = {
        f"{name}, {threads} thread{'s' * (threads > 1)}": lambda take=take, threads=threads: _read(files, take, threads)  # type: ignore[misc]
        for name, take in (("read()", _read_part), ("readinto", _read_into_part))
        for threads in (1, settings.threads)
    }
    runs = {"profile": pass_alone, "profile, headers and layout included": profile, **readers}
    for run in runs.values():
        run()
    taken = dict(zip(runs, in_turns(settings.turns, *runs.values()), strict=True))
    speed = measured / taken["profile"]
    for name, seconds in taken.items():
        done = measured if name.startswith("profile") else nbytes(folder)
        yield name, f"{done / 1e9:.2f}", f"{seconds:.2f}", rate(done, seconds), times(speed / (done / seconds))


def _read(files: list[Path], take: Callable[[Path, int, int], None], threads: int) -> None:
    """Every file, in as many parts as there are threads."""
    parts = []
    for file in files:
        step = -(-file.stat().st_size // threads)
        parts += [
            (file, start, min(file.stat().st_size, start + step)) for start in range(0, file.stat().st_size, step)
        ]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(take, *part) for part in parts]:
            done.result()


def _read_part(path: Path, start: int, end: int) -> None:
    """All of it at once, into new memory."""
    with open(path, "rb") as file:
        file.seek(start)
        file.read(end - start)


def _read_into_part(path: Path, start: int, end: int) -> None:
    """Into one small buffer, again and again: nothing reads faster, and nothing is left of what was read."""
    buffer = memoryview(bytearray(_CHUNK))
    descriptor = os.open(path, os.O_RDONLY)
    for position in range(start, end, _CHUNK):
        os.preadv(descriptor, [buffer[: min(_CHUNK, end - position)]], position)
    os.close(descriptor)
