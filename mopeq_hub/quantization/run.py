"""A run over the units of a model: each shard got, quantized, hashed, sent where it will be published, and let go."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from mopeq_hub.engines import local
from mopeq_hub.model import Model
from mopeq_hub.passage import Passage
from mopeq_hub.progress import Advance, Progress
from mopeq_hub.quantization.journal import Finished, Journal, digest
from mopeq_hub.quantization.packing import Packed
from mopeq_hub.quantization.stream import Piece, Unit, quantize_unit
from mopeq_hub.recipe import Recipe


class Watch(Protocol):
    """Somebody who looks at every piece as it goes by, and remembers."""

    resumed: bool
    """Whether it remembers what an earlier run showed it."""

    def see(self, piece: Piece, made: dict[str, np.ndarray]) -> None:
        """What was made of a piece, while the source is still mapped."""

    def keep(self) -> None:
        """What was seen so far must survive this process."""


Send = Callable[[Path, str], None]
"""Uploads a file with this SHA-256, in hex, so that the commit that publishes it finds it there."""


def quantize_units(
    model: Model,
    units: Sequence[Unit],
    recipe: Recipe,
    work: Path,
    folder: Path,
    progress: Progress,
    tuned: Mapping[str, Packed],
    send: Send | None = None,
    watch: Watch | None = None,
) -> list[Finished]:
    """Have every unit's files finished: in `folder`, or sent and gone from there.

    tuned: packed weights by the name of their matrix, which are not quantized here. Units that an earlier run finished,
    as the journal in `work` says and their contents prove, are not done again.
    """
    journal = Journal(work, folder)
    if watch and not watch.resumed:
        # What went by before was not seen: it has to come again.
        journal.forget()
    left = [unit for unit in units if journal.of(unit) is None]
    if len(left) < len(units):
        progress.say(f"going on where it was stopped: {len(units) - len(left)} of {len(units)} shards are finished")
    remote = model.source.kind == "hub"
    total = sum(unit.nbytes + (model.source.files()[unit.shard] if remote else 0) for unit in left)
    with progress.stage("download, quantize" if remote else "quantize", total) as advance:
        local.run(_Stages(model, recipe, journal, folder, advance, tuned, send, watch), left)
    return [file for unit in units for file in journal.finished(unit)]


class _Stages:
    """The stages of one unit."""

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        journal: Journal,
        folder: Path,
        advance: Advance,
        tuned: Mapping[str, Packed],
        send: Send | None,
        watch: Watch | None,
    ) -> None:
        self._model, self._recipe, self._journal, self._folder = model, recipe, journal, folder
        self._passage = Passage(model, advance)
        self._advance, self._tuned, self._send, self._watch = advance, tuned, send, watch

    def get(self, unit: Unit) -> None:
        self._passage.get(unit.shard)

    def work(self, unit: Unit) -> None:
        checkpoint = self._model.checkpoint
        see = self._watch.see if self._watch else None
        quantize_unit(checkpoint, unit, self._recipe, self._folder, self._advance, self._tuned, see)
        if self._watch:
            # Before the journal says that this unit need not come again.
            self._watch.keep()
        self._passage.let_go(unit.shard)

    def finish(self, unit: Unit) -> None:
        files = []
        for output in unit.outputs:
            path = self._folder / output.file
            finished = Finished(output.file, path.stat().st_size, digest(path), sent=self._send is not None)
            if self._send:
                self._send(path, finished.sha256)
            files.append(finished)
        self._journal.add(unit, files)
        for file in files:
            if file.sent:
                (self._folder / file.file).unlink()

    def stop(self) -> None:
        self._passage.stop()
