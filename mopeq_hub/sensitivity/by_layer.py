"""The pass over a model layer by layer, for signals that look at one layer at a time; in the asking process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Matrix
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.model import Model
from mopeq_hub.passage import Passage, stage
from mopeq_hub.progress import Advance, Progress
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import BY_LAYER, LayerView
from mopeq_hub.sensitivity.initial import EarlierRouters
from mopeq_hub.sensitivity.layer import damaged
from mopeq_hub.sensitivity.profile import Values


def measure_layers(
    model: Model,
    recipe: Recipe,
    measured: Mapping[str, Values],
    keep: Callable[[dict[str, Values]], None],
    progress: Progress,
    initial: str | None,
) -> None:
    """Measure the layers that have a projection which is not `measured`; `keep` is told what each gave, by name.

    A Hub model's shards come when the first layer needs them and go when no later one does. initial: where an earlier
    checkpoint is. Raises MopeqError where router or norm were not found, or on NaN and infinity, naming the tensor.
    """
    check_routing(model, recipe)
    matrices: dict[int, list[Matrix]] = {}
    for expert, parts in model.layout.experts.items():
        matrices.setdefault(expert.layer, []).extend(parts)
    left = [layer for layer, parts in matrices.items() if any(part.name not in measured for part in parts)]
    shards = {layer: _shards(model, layer, matrices[layer]) for layer in left}
    sources = {part.source for layer in left for part in matrices[layer]}
    nbytes = sum(model.checkpoint.tensors[source].nbytes for source in sources)
    earlier = EarlierRouters(initial, model) if initial else None
    work = _Measuring(model, recipe, matrices, shards, earlier)
    coming = dict.fromkeys(shard for layer in left for shard in shards[layer])
    with stage(progress, model.source, coming, f"measure {recipe.signal}", nbytes) as advance:
        LOCAL.run(work, left, lambda _, found: keep(found), advance)


def check_routing(model: Model, recipe: Recipe) -> None:
    """Raises MopeqError where the recipe's signal looks at layers, and it is not known how they route."""
    if recipe.signal in BY_LAYER and model.layout.routing.trouble:
        raise MopeqError(
            f"--signal {recipe.signal} needs each layer's router and norm: {model.layout.routing.trouble}",
            "use --signal hessian",
        )


def _shards(model: Model, layer: int, matrices: Sequence[Matrix]) -> list[str]:
    """The files that hold a layer's experts, its router with its bias, and its norm."""
    routing, source_of = model.layout.routing, model.layout.source_of
    sources = [*(matrix.source for matrix in matrices), source_of[routing.routers[layer]]]
    sources.append(source_of[routing.norms[layer]])
    sources += [source_of[name] for name in [routing.biases.get(layer, "")] if name in source_of]
    return list(dict.fromkeys(model.checkpoint.tensors[source].file for source in sources))


@dataclass(frozen=True)
class _Measuring:
    """The work on layers."""

    model: Model
    recipe: Recipe
    matrices: Mapping[int, Sequence[Matrix]]
    shards: Mapping[int, Sequence[str]]
    earlier: EarlierRouters | None

    def open(self, advance: Advance, place: Path | None = None) -> "_Stages":
        return _Stages(self, advance, place)

    def part(self, layer: int) -> "_Measuring":
        return self


class _Stages:
    """The stages of one layer."""

    def __init__(self, asked: _Measuring, advance: Advance, place: Path | None) -> None:
        self._asked, self._advance = asked, advance
        self._passage = Passage(asked.model.weights, advance, place)
        self._last = {shard: layer for layer, shards in asked.shards.items() for shard in shards}
        self._here: set[str] = set()

    def get(self, layer: int) -> None:
        for shard in self._asked.shards[layer]:
            if shard not in self._here:
                self._passage.get(shard)
                self._here.add(shard)

    def work(self, layer: int) -> dict[str, Values]:
        asked, checkpoint = self._asked, self._asked.model.checkpoint
        found = BY_LAYER[asked.recipe.signal](self._view(layer), asked.recipe)
        for source in {matrix.source for matrix in asked.matrices[layer]}:
            checkpoint.let_go(source)
            self._advance(checkpoint.tensors[source].nbytes)
        for shard in asked.shards[layer]:
            if self._last[shard] == layer:
                self._passage.let_go(shard)
        return dict(found)

    def _view(self, layer: int) -> LayerView:
        asked, layout = self._asked, self._asked.model.layout
        experts: dict[int, dict[str, Matrix]] = {}
        for matrix in asked.matrices[layer]:
            assert matrix.expert is not None
            experts.setdefault(matrix.expert.index, {})[str(matrix.projection)] = matrix
        router, norm = (layout.source_of[name[layer]] for name in (layout.routing.routers, layout.routing.norms))
        bias = layout.source_of.get(layout.routing.biases.get(layer, ""))
        return LayerView(
            layer=layer,
            checkpoint=asked.model.checkpoint,
            experts=tuple(experts.values()),
            router=self._numbers(router),
            norm=self._numbers(norm)[0] + np.float32(layout.routing.offset),
            gated=layout.routing.gated,
            experts_per_token=layout.experts_per_token,
            normalized=layout.routing.normalized,
            initial=asked.earlier.read(layer) if asked.earlier else None,
            scores=layout.routing.scores,
            bias=self._numbers(bias)[0] if bias else None,
        )

    def _numbers(self, source: str) -> NDArray[np.float32]:
        """A small tensor as a matrix. Raises MopeqError where it is not finite."""
        checkpoint = self._asked.model.checkpoint
        shape = checkpoint.tensors[source].shape
        if len(shape) == 1:
            values = Weight(checkpoint.array(source)[None]).float32()
        else:
            values = Matrix("", source, (shape[0], shape[1])).read(checkpoint).float32()
        if not np.isfinite(values).all():
            raise damaged(source)
        return values

    def finish(self, made: dict[str, Values]) -> dict[str, Values]:
        return made

    def stop(self) -> None:
        self._passage.stop()
