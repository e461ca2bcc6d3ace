"""How well a signal tells a model's experts apart, in numbers; `mopeq_hub.report.spread` has them in words.

Clusters are found in whatever is clustered, in noise too. Two numbers tell which it is: the coefficient of variation of
the sensitivities, and the silhouette (Rousseeuw 1987) of k-means' clusters, how much nearer an expert is to its own
cluster than to the next one, 1 at most.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mopeq_hub.allocation.kmeans import cluster
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import Profile

_SAMPLE = 2000
"""Experts that the silhouette is taken over: the distances of all pairs are looked at."""


def spread_of(profile: Profile, recipe: Recipe) -> dict[str, float | None]:
    """Of a profile's sensitivities, as the manifest has it, rounded.

    within: mean over the layers of the coefficient of variation of their experts. between: that of the layers' means.
    all: of all experts. silhouette: of k-means' clusters for the recipe's widths, as its scope has them, the mean over
    layers where these are clustered one by one; None with one width, or values that are all the same.
    """
    layers = list(profile.by_layer().values())
    values = [value for layer in layers for value in layer]
    competing = [values] if recipe.scope == "model" else layers
    found = [each for each in (_silhouette(group, recipe) for group in competing) if each is not None]
    return {
        "within": _rounded(np.mean([_variation(layer) for layer in layers])),
        "between": _rounded(_variation([float(np.mean(layer)) for layer in layers])),
        "all": _rounded(_variation(values)),
        "silhouette": _rounded(np.mean(found)) if found else None,
    }


def _variation(values: Sequence[float]) -> float:
    """Standard deviation over mean; 0 where all are 0."""
    mean = float(np.mean(np.abs(values)))
    return float(np.std(values)) / mean if mean else 0.0


def _silhouette(values: Sequence[float], recipe: Recipe) -> float | None:
    from sklearn.metrics import silhouette_score
    from threadpoolctl import threadpool_limits

    labels = cluster(values, recipe.bits, recipe.seed)
    if not 1 < len(set(labels)) < len(values):
        return None
    column = np.asarray(values, np.float64).reshape(-1, 1)
    sample = None if len(values) <= _SAMPLE else _SAMPLE
    with threadpool_limits(1):
        return float(silhouette_score(column, labels, sample_size=sample, random_state=recipe.seed))


def _rounded(value: Any) -> float:
    return round(float(value), 4)
