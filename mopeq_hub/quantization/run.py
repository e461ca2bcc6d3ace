"""A run over the units of a model: each shard got, quantized, hashed, sent where it will be published, and let go."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import MopeqError
from mopeq_hub.model import Model, Weights
from mopeq_hub.packing import Packed
from mopeq_hub.passage import Passage, stage
from mopeq_hub.progress import Advance, Progress
from mopeq_hub.quantization.journal import Finished, Journal
from mopeq_hub.quantization.stream import Piece, Unit, quantize_unit
from mopeq_hub.recipe import Recipe
from mopeq_hub.records import sha256_of


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
    engine: Engine = LOCAL,
) -> list[Finished]:
    """Have every unit's files finished: in `folder`, or sent and gone from there.

    tuned: packed weights by the name of their matrix, which are not quantized here. Units that an earlier run finished,
    as the journal in `work` says and their contents prove, are not done again.
    """
    if watch and engine.elsewhere:
        finished = quantize_units(model, units, recipe, work, folder, progress, tuned, send, None, engine)
        _show(model, units, recipe, work, progress, tuned, watch)
        return finished
    journal = Journal(work, folder)
    if watch and not watch.resumed:
        # What went by before was not seen: it has to come again.
        journal.forget()
    left = [unit for unit in units if journal.of(unit) is None]
    if len(left) < len(units):
        progress.say(f"going on where it was stopped: {len(units) - len(left)} of {len(units)} shards are finished")
    nbytes = sum(unit.nbytes for unit in left)
    with stage(progress, model.source, [unit.shard for unit in left], "quantize", nbytes) as advance:
        engine.run(Quantizing(model.weights, recipe, folder, tuned, send, watch), left, journal.add, advance)
    return [file for unit in units for file in journal.finished(unit)]


def _show(
    model: Model,
    units: Sequence[Unit],
    recipe: Recipe,
    work: Path,
    progress: Progress,
    tuned: Mapping[str, Packed],
    watch: Watch,
) -> None:
    """Let the watcher see what was made elsewhere: here the same bytes are made once more, and thrown away."""
    seen = work / "seen"
    seen.mkdir(exist_ok=True)
    quantize_units(model, units, recipe, seen, seen, progress, tuned, _throw_away, watch)


def _throw_away(path: Path, sha256: str) -> None:
    """What is sent is taken from the folder afterwards."""


@dataclass(frozen=True)
class Quantizing:
    """The work on units: their files in `folder`, or sent and gone."""

    weights: Weights
    recipe: Recipe
    folder: Path
    tuned: Mapping[str, Packed]
    send: Send | None
    watch: Watch | None

    def open(self, advance: Advance, place: Path | None = None) -> "_Stages":
        return _Stages(self, advance, place)

    def part(self, unit: Unit) -> "Quantizing":
        names = [piece.name for piece in unit.pieces if piece.name in self.tuned]
        return replace(self, tuned={name: self.tuned[name] for name in names})


class _Stages:
    """The stages of one unit."""

    def __init__(self, asked: Quantizing, advance: Advance, place: Path | None) -> None:
        self._asked, self._advance = asked, advance
        self._folder = place if place and asked.send else asked.folder
        self._passage = Passage(asked.weights, advance, place)
        if not self._folder.is_dir():
            raise MopeqError(
                f"{self._folder} is not on {platform.node()}",
                "let all machines of the cluster have that folder in common",
            )

    def get(self, unit: Unit) -> None:
        self._passage.get(unit.shard)

    def work(self, unit: Unit) -> list[Path]:
        asked = self._asked
        checkpoint = asked.weights.checkpoint
        see = asked.watch.see if asked.watch else None
        quantize_unit(checkpoint, unit, asked.recipe, self._folder, self._advance, asked.tuned, see)
        if asked.watch:
            # Before the journal says that this unit need not come again.
            asked.watch.keep()
        self._passage.let_go(unit.shard)
        return [self._folder / output.file for output in unit.outputs]

    def finish(self, made: list[Path]) -> list[Finished]:
        return [self._finished(path) for path in made]

    def _finished(self, path: Path) -> Finished:
        send = self._asked.send
        file = Finished(path.name, path.stat().st_size, sha256_of(path), sent=send is not None)
        if send:
            send(path, file.sha256)
            path.unlink()
        return file

    def stop(self) -> None:
        self._passage.stop()
