"""The widths that cost least within a budget: a multiple-choice knapsack.

Each item takes one of its widths; each has a size and a cost, and the sizes together must not pass the budget.

Partial choices are followed item by item, those that no other is both smaller and cheaper than (Nemhauser and Ullmann,
Management Science 15, 1969): the best at the end is the optimum. Where there are too many of them, the budget is spent
on the steps that save most for each byte, along the lower convex hull of each item's choices (Sinha and Zoltners,
Operations Research 27, 1979): the optimum of the linear relaxation but for one step. Then items are raised into what is
left of it, alone or while another is lowered, until no such exchange makes the total less.
"""

import numpy as np
from numpy.typing import NDArray

from mopeq_hub.allocation.items import Items
from mopeq_hub.recipe import Recipe

Costs = NDArray[np.float64]
Sizes = NDArray[np.int64]
Choices = NDArray[np.intp]

_MOST_PARTIAL = 2000
"""Partial choices that are followed; a hundred experts of one shape have about two hundred."""
_WORTH = 1e-12
"""Of the total cost: what an exchange must save, so that rounding does not let it go round in circles."""


def widths(items: Items, recipe: Recipe) -> list[int]:
    """The widths of the items with which least is lost."""
    return [items.widths[choice] for choice in choose(items.costs, *items.room)]


def choose(costs: Costs, sizes: Sizes, capacity: int) -> Choices:
    """The choice of each item [n], 0 to k - 1, of least total cost within `capacity`.

    costs [n, k], infinite from where on an item has no choice any more; sizes [n, k], rising along each row; the
    smallest choices of all items, which have finite costs, must fit.
    """
    found = optimum(costs, sizes, capacity)
    return near_optimum(costs, sizes, capacity) if found is None else found


def near_optimum(costs: Costs, sizes: Sizes, capacity: int) -> Choices:
    """As `choose`, but only so good that no change of one or two items would be better."""
    chosen = _greedy(costs, sizes, capacity)
    while (moves := _best_exchange(costs, sizes, chosen, capacity)) is not None:
        for item, choice in moves:
            chosen[item] = choice
    return chosen


def optimum(costs: Costs, sizes: Sizes, capacity: int) -> Choices | None:
    """As `choose`; None where there are too many partial choices to follow."""
    needed_after = sizes[::-1, 0].cumsum()[::-1] - sizes[:, 0]
    size, cost = np.zeros(1, np.int64), np.zeros(1)
    kept: list[NDArray[np.intp]] = []
    for item in range(len(costs)):
        sizes_now, costs_now = (size[:, None] + sizes[item]).ravel(), (cost[:, None] + costs[item]).ravel()
        possible = np.flatnonzero((sizes_now + needed_after[item] <= capacity) & np.isfinite(costs_now))
        order = possible[np.lexsort((costs_now[possible], sizes_now[possible]))]
        cheapest_before = np.minimum.accumulate(np.append(np.inf, costs_now[order]))[:-1]
        kept.append(order[costs_now[order] < cheapest_before])
        if len(kept[-1]) > _MOST_PARTIAL:
            return None
        size, cost = sizes_now[kept[-1]], costs_now[kept[-1]]
    chosen, state = np.zeros(len(costs), np.intp), len(cost) - 1
    for item in reversed(range(len(costs))):
        state, chosen[item] = divmod(int(kept[item][state]), costs.shape[1])
    return chosen


def _greedy(costs: Costs, sizes: Sizes, capacity: int) -> Choices:
    """The steps along the items' hulls that save most for each byte, as far as they fit."""
    steps = [step for item in range(len(costs)) for step in _hull(item, costs[item], sizes[item])]
    # A step on an item's hull saves less for each byte than the one before, so the order keeps them in turn.
    steps.sort(key=lambda step: (-step[0], step[1]))
    chosen = np.zeros(len(costs), np.intp)
    left = capacity - int(sizes[:, 0].sum())
    stopped: set[int] = set()
    for _, item, choice in steps:
        more = int(sizes[item, choice] - sizes[item, chosen[item]])
        if item in stopped or more > left:
            stopped.add(item)
            continue
        chosen[item] = choice
        left -= more
    return chosen


def _hull(item: int, costs: Costs, sizes: Sizes) -> list[tuple[float, int, int]]:
    """The steps from the smallest choice along the lower hull: saved for each byte, item, and to which choice."""
    steps: list[tuple[float, int, int]] = []
    at = 0
    while at + 1 < len(costs):
        saved = (costs[at] - costs[at + 1 :]) / (sizes[at + 1 :] - sizes[at])
        # Of equal ones the farthest, so that no choice on the straight line between is a step of its own.
        best = len(saved) - 1 - int(np.argmax(saved[::-1]))
        if saved[best] <= 0:
            break
        at += 1 + best
        steps.append((float(saved[best]), item, at))
    return steps


def _best_exchange(costs: Costs, sizes: Sizes, chosen: Choices, capacity: int) -> list[tuple[int, int]] | None:
    """The one change, or pair of changes of two items, that fits and saves most; None where none saves anything."""
    items, width = np.arange(len(costs)), costs.shape[1]
    now_cost, now_size = costs[items, chosen], sizes[items, chosen]
    left = capacity - int(now_size.sum())
    # One more that changes nothing, of no item: the other half of a change that is made alone.
    more_cost = np.append(costs - now_cost[:, None], 0.0)
    more_size = np.append(sizes - now_size[:, None], 0)
    possible = np.flatnonzero(np.isfinite(more_cost))
    changes, kind = np.unique(more_size[possible], return_inverse=True)
    ranked = np.lexsort((more_cost[possible], kind))
    order = possible[ranked]
    first = np.searchsorted(kind[ranked], np.arange(len(changes)))
    last = np.append(first[1:], len(order))
    # Of all changes of one size, the two best of different items: that is all a pair can need.
    best = [_two_items(order[start:end], width) for start, end in zip(first, last, strict=True)]
    found, saved = None, -_WORTH * max(float(np.abs(now_cost).sum()), np.finfo(float).tiny)
    for one, ups in zip(changes, best, strict=True):
        for other, downs in zip(changes, best, strict=True):
            if one + other > left or one < other:
                continue
            for up in ups:
                for down in downs:
                    if up // width == down // width:
                        continue
                    together = more_cost[up] + more_cost[down]
                    if together < saved:
                        found, saved = [up, down], together
    return None if found is None else [divmod(move, width) for move in found if move // width < len(costs)]


def _two_items(order: NDArray[np.intp], width: int) -> list[int]:
    """The first of `order`, and the first after it of another item."""
    first = int(order[0])
    following = next((int(move) for move in order[1:] if int(move) // width != first // width), None)
    return [first] if following is None else [first, following]
