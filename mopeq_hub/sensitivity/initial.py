"""An earlier checkpoint of a model: named by a user, pinned in the recipe, and only its routers read."""

import math
import re
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.kernels.weight import STORED, Weight
from mopeq_hub.model import Model, open_model
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity.layer import damaged
from mopeq_hub.source import open_source

_OF_A_FOLDER = re.compile(r".*@[0-9a-f]{64}")


def pinned(recipe: Recipe) -> tuple[Recipe, str | None]:
    """The recipe with name and commit of its earlier checkpoint in place of what the user wrote, and where that is;
    None where there is none.

    Raises UsageError where nothing has that name, MopeqError where it cannot be reached.
    """
    if not recipe.initial:
        return recipe, None
    if _OF_A_FOLDER.fullmatch(recipe.initial):
        raise UsageError(f"--initial {recipe.initial} is the contents of a folder", "name the folder that has them")
    source = open_source(recipe.initial)
    return replace(recipe, initial=f"{source.name}@{source.commit}"), source.location


class EarlierRouters:
    """The routers of an earlier checkpoint, each a range of a file."""

    def __init__(self, location: str, model: Model) -> None:
        """Raises MopeqError where it is no model of this kind, or a router of it has another shape or form."""
        if model.trusted:
            # Its routers have names that only its code gives, and only the model's own was trusted.
            raise MopeqError(
                f"an earlier checkpoint of {model.source.name}, whose kind transformers does not have, cannot be read",
                "leave --initial out",
            )
        self._earlier = open_model(location, named=False)
        self._sources: dict[int, str] = {}
        there = self._earlier.layout
        for layer, router in model.layout.routing.routers.items():
            wanted = model.checkpoint.tensors[model.layout.source_of[router]].shape
            source = there.source_of.get(there.routing.routers.get(layer, ""))
            info = self._earlier.checkpoint.tensors[source] if source else None
            if source is None or info is None or info.shape != wanted or info.dtype not in set(STORED) - {"F8_E4M3"}:
                found = f"has one of shape {list(info.shape)} in {info.dtype}" if info else "has none"
                raise MopeqError(
                    f"{self._earlier.source.name} is no earlier checkpoint of {model.source.name}: where the router of "
                    f"layer {layer} has the shape {list(wanted)}, it {found}",
                    "name another --initial, or leave it out",
                )
            self._sources[layer] = source

    def read(self, layer: int) -> NDArray[np.float32]:
        """The router of a layer [experts, hidden]. Raises MopeqError where it is not finite."""
        source = self._sources[layer]
        values = Weight(self._earlier.checkpoint.apart(source)).float32()
        if not math.isfinite(float(values.sum(dtype=np.float64))):
            raise damaged(f"{source} of {self._earlier.source.name}")
        return values
