"""Which weights each part of a model needs, and the memory in which they gather until it can run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mopeq_hub.experts import Layout, Matrix
from mopeq_hub.fidelity.staged import StagedModel
from mopeq_hub.kept import Kept

Item = Matrix | str
"""What is offered: a matrix that may be quantized, or the live name of a tensor that is published as it is."""


@dataclass(frozen=True)
class Place:
    """Where a tensor goes in the live model: a whole parameter, or `rows` of one expert of a fused one.

    transposed: the parameter holds that expert's weight as [in, out].
    """

    parameter: str
    expert: int | None = None
    rows: tuple[int, int] = (0, 0)
    transposed: bool = False

    def part(self, whole: torch.Tensor) -> torch.Tensor:
        """What of the parameter this is, as a view [out, in], or [out] of a bias."""
        if self.expert is None:
            return whole
        mine = whole[self.expert]
        return (mine.T if self.transposed else mine)[slice(*self.rows)]


@dataclass(frozen=True)
class Stage:
    """One part of the model: `before` its decoder layers, `layer 0` and so on, `after` them.

    items: everything that must be offered before it can run. sources: the tensors of the checkpoint that this takes.
    places: by the item's key. A head that is tied to the embeddings needs their tensor: it is in `before` and `after`.
    """

    name: str
    items: tuple[Item, ...]
    sources: frozenset[str]
    places: dict[str, tuple[Place, ...]]


def stages_of(layout: Layout, model: StagedModel) -> list[Stage]:
    """The parts in the order in which they run."""
    kept = layout.answering
    copies: dict[str, list[str]] = {}
    for name, original in model.tied.items():
        if name not in kept:
            copies.setdefault(original, []).append(name)
    places: dict[Item, list[Place]] = {matrix: [place_of(matrix, layout)] for matrix in layout.matrices}
    aside = tuple(f"{module.name}." for module in layout.aside)
    places |= {
        live: [_part_of(each, layout)]
        if each.part or live.startswith(aside)
        else [Place(name) for name in (live, *copies.get(live, ()))]
        for live, each in kept.items()
    }
    parts = {
        "before": model.before,
        **{f"layer {n}": part for n, part in enumerate(model.layers)},
        "after": model.after,
    }
    part_of = {name: part for part, names in parts.items() for name in names}
    inside: dict[str, dict[Item, list[Place]]] = {part: {} for part in parts}
    for item, found in places.items():
        for place in found:
            inside[part_of[place.parameter]].setdefault(item, []).append(place)
    return [
        Stage(
            part,
            items=tuple(found),
            sources=frozenset(
                source for item in found for source in (kept[item].sources if isinstance(item, str) else (item.source,))
            ),
            places={key_of(item): tuple(where) for item, where in found.items()},
        )
        for part, found in inside.items()
    ]


def place_of(matrix: Matrix, layout: Layout) -> Place:
    """Where a matrix goes; experts' projections lie along the output rows of their module's fused parameter."""
    if matrix.expert is None:
        return Place(f"{matrix.name}.weight")
    module = layout.module_of(matrix.expert)
    if not module.form.fused:
        return Place(f"{matrix.name}.weight")
    part = next(part for part in module.form.fused if matrix.projection in part.projections)
    first = part.projections.index(str(matrix.projection)) * matrix.shape[0]
    rows = (first, first + matrix.shape[0])
    return Place(f"{module.name}.{part.name}", matrix.expert.index - module.first, rows, module.form.transposed)


def _part_of(kept: Kept, layout: Layout) -> Place:
    """Where an expert's bias goes, or a weight of one beside the text model: along those of its module's others."""
    module = next(each for each in (*layout.modules, *layout.aside) if kept.name.startswith(f"{each.name}."))
    index, projection, kind = kept.name[len(module.name) + 1 :].split(".")
    part = next(each for each in module.form.fused if projection.removesuffix("_proj") in each.projections)
    first = part.projections.index(projection.removesuffix("_proj")) * kept.shape[0]
    rows = (first, first + kept.shape[0])
    if kind == "bias":
        return Place(f"{module.name}.{part.name}_bias", int(index), rows)
    return Place(f"{module.name}.{part.name}", int(index), rows, module.form.transposed)


def key_of(item: Item) -> str:
    """An item's name, unique among all."""
    return item if isinstance(item, str) else item.name


class Gathering:
    """The weights of one part as they arrive, copied in the dtype that they are computed in.

    original, published: by parameter; what is published as it is, is one tensor in both. missing: keys of what has not
    been offered yet.
    """

    def __init__(self, stage: Stage, empty: Callable[[str], torch.Tensor]) -> None:
        """empty: makes a tensor like the parameter of that name, its values not yet set."""
        self.stage, self._empty = stage, empty
        self.missing = set(stage.places)
        self.original: dict[str, torch.Tensor] = {}
        self.published: dict[str, torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        tensors = [*self.original.values(), *self.published.values()]
        return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())

    def put(self, item: Item, original: torch.Tensor, published: torch.Tensor | None) -> None:
        """Copy an item to its places. published: None where it is the original."""
        for place in self.stage.places[key_of(item)]:
            self._fill(self.original, place, original)
            if published is not None:
                self._fill(self.published, place, published)
            elif place.expert is None:
                self.published[place.parameter] = self.original[place.parameter]
            else:
                self._fill(self.published, place, original)
        self.missing.remove(key_of(item))

    def _fill(self, side: dict[str, torch.Tensor], place: Place, value: torch.Tensor) -> None:
        if place.parameter not in side:
            side[place.parameter] = self._empty(place.parameter)
        place.part(side[place.parameter]).copy_(value)


def as_loaded(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What auto-round's module computes with where activations are of `dtype`, of the float32 weight that codes and
    scales stand for.

    It multiplies codes by float16 scales before it converts the product; in a model that was made float32 as a whole,
    by float32 scales.
    """
    return weight if dtype == torch.float32 else weight.half()
