"""A run over the units of a model: each shard got, quantized, hashed, sent where it will be published, and let go."""

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mopeq_hub import workplace
from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import MopeqError
from mopeq_hub.model import Model, Weights
from mopeq_hub.passage import Passage
from mopeq_hub.progress import Advance, Progress
from mopeq_hub.quantization.journal import Finished, Journal, digest
from mopeq_hub.quantization.packing import Packed
from mopeq_hub.quantization.stream import Unit, Watcher, quantize_unit
from mopeq_hub.recipe import Recipe

Send = Callable[[Path], None]
"""Uploads a file so that the commit that publishes it finds it there."""


def quantize_units(
    model: Model,
    units: Sequence[Unit],
    recipe: Recipe,
    work: Path,
    folder: Path,
    progress: Progress,
    tuned: Mapping[str, Packed],
    send: Send | None = None,
    watch: Watcher | None = None,
    engine: Engine = LOCAL,
) -> list[Finished]:
    """Have every unit's files finished: in `folder`, or sent and gone from there.

    tuned: packed weights by the name of their matrix, which are not quantized here. Units that an earlier run finished,
    as the journal in `work` says and their contents prove, are not done again.
    """
    journal = Journal(work, folder)
    left = [unit for unit in units if journal.of(unit) is None]
    if len(left) < len(units):
        progress.say(f"going on where it was stopped: {len(units) - len(left)} of {len(units)} shards are finished")
    remote = model.source.kind == "hub"
    total = sum(unit.nbytes + (model.source.files()[unit.shard] if remote else 0) for unit in left)
    quantizing = Quantizing(model.weights, recipe, folder, tuned, send, None if engine.elsewhere else watch)
    with progress.stage("download, quantize" if remote else "quantize", total) as advance:
        engine.run(quantizing, left, journal.add, advance)
    if watch and engine.elsewhere:
        _watch_again(replace(quantizing, watch=watch), left, progress, total)
    return [file for unit in units for file in journal.finished(unit)]


def _watch_again(quantizing: "Quantizing", units: Sequence[Unit], progress: Progress, total: int) -> None:
    """Let the watcher see what other processes made: the same bytes once more, on this machine, and thrown away."""
    with progress.stage("quantize for fidelity", total) as advance, workplace.scratch() as folder:
        LOCAL.run(replace(quantizing, folder=folder, send=_throw_away), units, _forget, advance)


def _throw_away(path: Path) -> None:
    """What is sent goes from the folder afterwards."""


def _forget(unit: Unit, files: Sequence[Finished]) -> None:
    """It was finished before, by others."""


@dataclass(frozen=True)
class Quantizing:
    """The work on units: their files in `folder`, or sent and gone."""

    weights: Weights
    recipe: Recipe
    folder: Path
    tuned: Mapping[str, Packed]
    send: Send | None
    watch: Watcher | None

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
                "let all machines of the cluster have that folder in common, or publish to the Hub",
            )

    def get(self, unit: Unit) -> None:
        self._passage.get(unit.shard)

    def work(self, unit: Unit) -> list[Path]:
        asked = self._asked
        checkpoint = asked.weights.checkpoint
        quantize_unit(checkpoint, unit, asked.recipe, self._folder, self._advance, asked.tuned, asked.watch)
        self._passage.let_go(unit.shard)
        return [self._folder / output.file for output in unit.outputs]

    def finish(self, made: list[Path]) -> list[Finished]:
        return [self._finished(path) for path in made]

    def _finished(self, path: Path) -> Finished:
        send = self._asked.send
        file = Finished(path.name, path.stat().st_size, digest(path), sent=send is not None)
        if send:
            send(path)
            path.unlink()
        return file

    def stop(self) -> None:
        self._passage.stop()
