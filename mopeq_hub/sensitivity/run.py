"""A run over the shards of a model that measures every expert; a run that was stopped is gone on with."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.experts import Matrix
from mopeq_hub.model import Model, Weights
from mopeq_hub.passage import Passage, stage
from mopeq_hub.progress import Advance, Progress
from mopeq_hub.recipe import Recipe
from mopeq_hub.records import append, entries
from mopeq_hub.sensitivity import BY_LAYER, SETTINGS, Profile, measure_matrices, profile_of
from mopeq_hub.sensitivity.by_layer import measure_layers
from mopeq_hub.sensitivity.given import NOTHING, Given
from mopeq_hub.sensitivity.profile import Values


def measure(
    model: Model, recipe: Recipe, notes: Path, progress: Progress, engine: Engine = LOCAL, given: Given = NOTHING
) -> Profile:
    """The profile of a model. `notes`, a file, keeps what each shard gave until the whole is there.

    Raises MopeqError on NaN or infinite weights, naming the tensor.
    """
    measured = _noted(notes)

    def keep(found: dict[str, Values]) -> None:
        measured.update(found)
        append(notes, found)

    if stand_in := SETTINGS[recipe.signal](recipe).get("stand_in"):
        progress.say(f"--signal {recipe.signal} takes {stand_in}; --initial names one")
    if recipe.signal in BY_LAYER:
        measure_layers(model, recipe, measured, keep, progress, given.initial)
    else:
        _measure_shards(model, recipe, measured, keep, progress, engine)
    profile = profile_of(model.layout, measured, recipe, model.source.commit)
    notes.unlink(missing_ok=True)
    return profile


def _measure_shards(
    model: Model,
    recipe: Recipe,
    measured: Mapping[str, Values],
    keep: Callable[[dict[str, Values]], None],
    progress: Progress,
    engine: Engine,
) -> None:
    """Measure what is not `measured` yet, shard by shard; `keep` is told what each gave."""
    shards: dict[str, list[Matrix]] = {}
    for matrix in model.layout.matrices:
        if matrix.expert is not None or recipe.rest_bits == "auto":
            shards.setdefault(model.checkpoint.tensors[matrix.source].file, []).append(matrix)
    left = [shard for shard, matrices in shards.items() if any(matrix.name not in measured for matrix in matrices)]
    sources = {matrix.source for shard in left for matrix in shards[shard]}
    nbytes = sum(model.checkpoint.tensors[source].nbytes for source in sources)
    with stage(progress, model.source, left, "measure", nbytes) as advance:
        engine.run(Measuring(model.weights, recipe, shards), left, lambda _, found: keep(found), advance)


def _noted(notes: Path) -> dict[str, Values]:
    """What a run that was stopped had measured."""
    measured: dict[str, Values] = {}
    for entry in entries(notes):
        with suppress(ValueError, AttributeError, TypeError):
            measured |= {str(name): tuple(map(float, values)) for name, values in entry.items()}
    return measured


@dataclass(frozen=True)
class Measuring:
    """The work on shards: the sensitivity of each expert's projection in one."""

    weights: Weights
    recipe: Recipe
    shards: Mapping[str, list[Matrix]]

    def open(self, advance: Advance, place: Path | None = None) -> "_Stages":
        return _Stages(self, advance, place)

    def part(self, shard: str) -> "Measuring":
        return replace(self, shards={shard: self.shards[shard]})


class _Stages:
    """The stages of one shard."""

    def __init__(self, asked: Measuring, advance: Advance, place: Path | None) -> None:
        self._asked, self._advance = asked, advance
        self._passage = Passage(asked.weights, advance, place)

    def get(self, shard: str) -> None:
        self._passage.get(shard)

    def work(self, shard: str) -> dict[str, Values]:
        asked = self._asked
        found = measure_matrices(asked.weights.checkpoint, asked.shards[shard], asked.recipe, self._advance)
        self._passage.let_go(shard)
        return found

    def finish(self, made: dict[str, Values]) -> dict[str, Values]:
        return made

    def stop(self) -> None:
        self._passage.stop()
