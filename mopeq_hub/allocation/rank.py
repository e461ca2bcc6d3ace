"""Widths by rank: the experts in order of their sensitivity, cut into as many parts as there are widths.

How large the parts are follows from the budget alone: of all shares of the widths that meet it, the most even ones
(those of greatest entropy, in the ratio exp(t * size) for one t). The more sensitive part gets the more bits.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mopeq_hub.allocation.items import Items
from mopeq_hub.recipe import Recipe

_STEEPEST, _HALVINGS = 200.0, 60
"""At t * size of this all shares but one vanish; so often is the range of t halved."""


def widths(items: Items, recipe: Recipe) -> list[int]:
    """The widths of the items, which compete with each other for their room."""
    return [items.widths[choice] for choice in cut_by_rank(list(items.values), *items.room)]


def cut_by_rank(values: Sequence[float], sizes: NDArray[np.int64], capacity: int) -> NDArray[np.intp]:
    """The choice of each value, 0 to k - 1, by its rank, as near to `capacity` as shares of that kind come.

    sizes [n, k], rising along each row; the smallest choices of all must fit.
    """
    order = np.argsort(values, kind="stable")
    mean = sizes.mean(axis=0) / sizes.mean(axis=0).max()
    chosen = np.zeros(len(order), np.intp)
    low, high = -_STEEPEST / mean[0], _STEEPEST / mean[0]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        exponents = mean * middle
        tried = _cut(order, np.exp(exponents - exponents.max()))
        if sizes[np.arange(len(order)), tried].sum() <= capacity:
            chosen, low = tried, middle
        else:
            high = middle
    return chosen


def _cut(order: NDArray[np.intp], shares: NDArray[np.float64]) -> NDArray[np.intp]:
    """The part of each item where the items in this order are cut by these shares."""
    ends = np.rint(np.cumsum(shares / shares.sum()) * len(order)).astype(np.intp)
    parts = np.empty(len(order), np.intp)
    parts[order] = np.searchsorted(ends, np.arange(len(order)), side="right")
    return parts
