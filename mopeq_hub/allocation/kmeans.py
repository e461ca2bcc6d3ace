"""The paper's allocator: k-means on the experts' sensitivities, the most sensitive cluster gets the most bits.

MoPEQ (arXiv 2509.02512), section 3.3: as many clusters as there are widths; model-wise all experts compete, layer-wise
those of one layer. Degenerate inputs are defined on the safe side: with fewer different values than widths there are as
many clusters as values, and they get the highest widths; so experts that cannot be told apart all get the highest.
"""

import warnings
from collections.abc import Sequence

import numpy as np

from mopeq_hub.allocation.items import Items
from mopeq_hub.recipe import Recipe

STARTS = 10
"""k-means is run from so many starting points and the tightest clustering is taken."""


def widths(items: Items, recipe: Recipe) -> list[int]:
    """The width of each of the items, which compete with each other; no budget is known to it."""
    return cluster(list(items.values), recipe.bits, recipe.seed)


def cluster(values: Sequence[float], choices: Sequence[int], seed: int) -> list[int]:
    """The width of each value: k-means into len(choices) clusters, the higher a cluster's mean the wider."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    column = np.asarray(values, dtype=np.float64)
    count = min(len(choices), len(np.unique(column)))
    highest = sorted(choices)[-count:]
    # Scaled to unit spread, so that values that differ only far behind the comma are clustered as any others.
    spread = np.ptp(column)
    scaled = ((column - column.min()) / spread if spread > 0 else np.zeros_like(column)).reshape(-1, 1)
    # On one thread: the order of its sums, and with it a value on the border, would depend on their number.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = KMeans(n_clusters=count, n_init=STARTS, random_state=seed).fit_predict(scaled)
    means = {label: column[labels == label].mean() for label in np.unique(labels)}
    ranked = sorted(means, key=lambda label: means[label])
    width_of = dict(zip(ranked, highest[-len(ranked) :], strict=True))
    return [width_of[label] for label in labels]
