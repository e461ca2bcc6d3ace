"""Shards of a model on their way through this machine: got ahead of the work, let go after it."""

import threading

from mopeq_hub.errors import MopeqError
from mopeq_hub.model import Model
from mopeq_hub.progress import Advance


class Passage:
    """Gets and lets go; `advance` is told the bytes that a Hub model's shards took to come."""

    def __init__(self, model: Model, advance: Advance) -> None:
        self._model, self._advance = model, advance
        self._stopped = threading.Event()

    def get(self, shard: str) -> None:
        """Have the file here. Raises MopeqError where it cannot be had, or where `stop` was called meanwhile."""
        self._model.source.fetch(shard, self._came)

    def _came(self, amount: int) -> None:
        if self._stopped.is_set():
            raise MopeqError("stopped before the end", "the same command goes on from there")
        if self._model.source.kind == "hub":
            self._advance(amount)

    def let_go(self, shard: str) -> None:
        """Nothing of the file is needed any more."""
        self._model.checkpoint.close(shard)
        self._model.source.let_go(shard)

    def stop(self) -> None:
        """What is being got comes to nothing soon."""
        self._stopped.set()
