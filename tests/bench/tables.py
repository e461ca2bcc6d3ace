"""What sections share: settings, medians of turns, tables, and words for the machine."""

import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from mopeq_hub.workplace import processor
from tests.bench.checkpoints import MEDIUM, SMALL, TINY_SIZED, Shape, write

SHAPES = Path(__file__).parent.parent / "assets" / "shapes-moe-vl"
ROOT = Path(__file__).parent.parent.parent
_PACKAGES = ("torch", "numba", "numpy", "transformers", "auto-round", "mopeq-hub")


@dataclass
class Settings:
    """folder: where large files go. limit: seconds after which a rival is stopped. publish: also from Hub to Hub."""

    folder: Path
    small: bool = False
    turns: int = 3
    threads: int = 2
    limit: float = 1800.0
    rivals: bool = True
    publish: bool = False

    @cached_property
    def medium(self) -> Path:
        """A checkpoint of 1.7 GB, written once a run."""
        return write(self.folder / "medium", SMALL if self.small else MEDIUM)

    @property
    def full(self) -> Shape:
        return SMALL if self.small else TINY_SIZED

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A folder on the disk of the large files."""
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            yield Path(scratch)

    def environment(self, home: Path) -> dict[str, str]:
        """Of a process whose caches are this run's own; compiled kernels stay where they are."""
        own = {"MOPEQ_HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
        threads = {name: str(self.threads) for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS")}
        return {**os.environ, **own, **threads}


def command(arguments: list[str]) -> list[str]:
    """The command line of this very checkout."""
    return [sys.executable, "-c", "from mopeq_hub.cli import main; main()", *arguments]


def set_threads(count: int) -> None:
    """For torch and Numba alike."""
    import numba
    import torch

    torch.set_num_threads(count)
    numba.set_num_threads(min(count, numba.get_num_threads()))


def machine(settings: Settings) -> str:
    import numba
    import torch
    from llvmlite import binding

    small = ", small sizes: figures mean nothing" * settings.small
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return (
        f"{processor()} ({binding.get_host_cpu_name()}), {len(os.sched_getaffinity(0))} cores{small}; "
        f"{settings.threads} threads each, torch {torch.get_num_threads()}, Numba {numba.get_num_threads()}\n"
        f"Python {platform.python_version()}, {packages}"
    )


def busy() -> float:
    """The share of the cores that others use, while this waits for a second."""
    import psutil

    return float(psutil.cpu_percent(interval=1.0)) / 100


def seconds_of(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def in_turns(turns: int, *runs: Callable[[], Any]) -> list[float]:
    """Median seconds of each function; they take turns, so that a busy minute hits all of them."""
    taken = [[seconds_of(run) for run in runs] for _ in range(turns)]
    return [statistics.median(column) for column in zip(*taken, strict=True)]


@contextmanager
def silence() -> Iterator[None]:
    """auto-round logs and prints at first calls."""
    import logging

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def table(title: str, columns: tuple[str, ...], rows: Iterable[tuple[str, ...]], caption: str | None = None) -> Table:
    made = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in columns:
        made.add_column(column, justify="left" if column == columns[0] else "right")
    for row in rows:
        # A long run tells what it has so far.
        print(" | ".join(row), file=sys.stderr, flush=True)
        made.add_row(*row)
    return made


def times(ratio: float) -> str:
    """A ratio in words: 0.52x, 3.1x, 240x."""
    return f"{ratio:.0f}x" if ratio >= 20 else f"{ratio:.1f}x" if ratio >= 2 else f"{ratio:.2f}x"


def rate(nbytes: float, seconds: float) -> str:
    """GB/s with two digits that count."""
    return f"{nbytes / seconds / 1e9:.2g}"
