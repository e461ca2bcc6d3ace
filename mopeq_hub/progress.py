"""How far a stage has come, told to whoever listens: bars on a terminal, nothing elsewhere."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the amount done since the last call: bytes, or steps."""


class Progress(Protocol):
    """What the pipeline tells while it runs."""

    def stage(self, name: str, total: int, unit: str = "bytes") -> AbstractContextManager[Advance]:
        """A context that gives `advance`; `total` is in bytes, or in steps of `unit`."""

    def say(self, text: str) -> None:
        """One line for the person who watches."""


class Quiet:
    """Tells nothing: for `--json`, pipes, and Python callers."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "bytes") -> Iterator[Advance]:
        yield lambda amount: None

    def say(self, text: str) -> None:
        pass


class Lines(Quiet):
    """Lines only, no bars: for logs, where a bar would leave thousands of lines behind."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


class Bars(Lines):
    """Rich bars with amount, rate and remaining time, on standard error, so that output can be piped."""

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "bytes") -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        amounts: list[ProgressColumn] = (
            [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn(), TextColumn(unit)]
        )
        label = TextColumn("{task.description:<22}")
        bars = RichProgress(label, BarColumn(), *amounts, TimeRemainingColumn(), console=Console(stderr=True))
        with bars:
            task = bars.add_task(name, total=total)
            yield lambda amount: bars.advance(task, amount)
