"""Shards of a model on their way through this machine: got ahead of the work, let go after it."""

import threading
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path

from mopeq_hub.errors import MopeqError
from mopeq_hub.model import Weights
from mopeq_hub.progress import Advance, Progress
from mopeq_hub.source import HubSource, Source


def stage(
    progress: Progress, source: Source, shards: Iterable[str], doing: str, nbytes: int
) -> AbstractContextManager[Advance]:
    """The stage of a run over `shards`: their coming, if from the Hub, and the work on `nbytes` of them."""
    if source.kind != "hub":
        return progress.stage(doing, nbytes)
    return progress.stage(f"download, {doing}", nbytes + sum(source.files()[shard] for shard in shards))


class Passage:
    """Gets and lets go; `advance` is told the bytes that a Hub model's shards took to come."""

    def __init__(self, weights: Weights, advance: Advance, place: Path | None = None) -> None:
        """place: a folder that a Hub model's shards come to; None leaves it to how the model was opened."""
        if place and isinstance(weights.source, HubSource):
            weights.source.pass_through(place / "source")
        self._weights, self._advance = weights, advance
        self._stopped = threading.Event()

    def get(self, shard: str) -> None:
        """Have the file here. Raises MopeqError where it cannot be had, or where `stop` was called meanwhile."""
        self._weights.source.fetch(shard, self._came)

    def _came(self, amount: int) -> None:
        if self._stopped.is_set():
            raise MopeqError("stopped before the end", "the same command goes on from there")
        if self._weights.source.kind == "hub":
            self._advance(amount)

    def let_go(self, shard: str) -> None:
        """Nothing of the file is needed any more."""
        self._weights.checkpoint.close(shard)
        self._weights.source.let_go(shard)

    def stop(self) -> None:
        """What is being got comes to nothing soon."""
        self._stopped.set()
