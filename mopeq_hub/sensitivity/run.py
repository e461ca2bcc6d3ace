"""A run over the shards of a model that measures every expert; a run that was stopped is gone on with."""

import json
from pathlib import Path

from mopeq_hub.engines import local
from mopeq_hub.experts import Matrix
from mopeq_hub.model import Model
from mopeq_hub.passage import Passage
from mopeq_hub.progress import Advance, Progress
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import Profile, measure_matrices, profile_of


def measure(model: Model, recipe: Recipe, notes: Path, progress: Progress) -> Profile:
    """The profile of a model. `notes`, a file, keeps what each shard gave until the whole is there.

    Raises MopeqError on NaN or infinite weights, naming the tensor.
    """
    shards: dict[str, list[Matrix]] = {}
    for matrix in model.layout.matrices:
        if matrix.expert is not None:
            shards.setdefault(model.checkpoint.tensors[matrix.source].file, []).append(matrix)
    measured = _noted(notes)
    left = [shard for shard, matrices in shards.items() if any(matrix.name not in measured for matrix in matrices)]
    remote = model.source.kind == "hub"
    sources = {matrix.source for shard in left for matrix in shards[shard]}
    total = sum(model.checkpoint.tensors[source].nbytes for source in sources)
    total += sum(model.source.files()[shard] for shard in left) if remote else 0
    with progress.stage("download, measure" if remote else "measure the experts", total) as advance:
        local.run(_Stages(model, recipe, shards, measured, notes, advance), left)
    profile = profile_of(model.layout, measured, recipe, model.source.commit)
    notes.unlink(missing_ok=True)
    return profile


def _noted(notes: Path) -> dict[str, float]:
    """What a run that was stopped had measured."""
    measured: dict[str, float] = {}
    for line in notes.read_text("utf-8").splitlines() if notes.is_file() else ():
        try:
            measured |= {str(name): float(value) for name, value in json.loads(line).items()}
        except (ValueError, AttributeError, TypeError):
            # The last line of a run that was killed while it wrote: that shard is measured again.
            continue
    return measured


class _Stages:
    """The stages of one shard."""

    def __init__(
        self,
        model: Model,
        recipe: Recipe,
        shards: dict[str, list[Matrix]],
        measured: dict[str, float],
        notes: Path,
        advance: Advance,
    ) -> None:
        self._model, self._recipe, self._shards = model, recipe, shards
        self._measured, self._notes, self._advance = measured, notes, advance
        self._passage = Passage(model, advance)

    def get(self, shard: str) -> None:
        self._passage.get(shard)

    def work(self, shard: str) -> None:
        found = measure_matrices(self._model.checkpoint, self._shards[shard], self._recipe, self._advance)
        self._passage.let_go(shard)
        self._measured |= found
        with open(self._notes, "a", encoding="utf-8") as file:
            file.write(("\n" if file.tell() else "") + json.dumps(found) + "\n")

    def finish(self, shard: str) -> None:
        pass

    def stop(self) -> None:
        self._passage.stop()
