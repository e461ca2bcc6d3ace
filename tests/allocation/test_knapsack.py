"""The knapsack: as good as an integer program, or about so, never over the budget."""

from collections.abc import Callable
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import block_diag, csr_matrix, vstack

from mopeq_hub import Recipe
from mopeq_hub.allocation import Room, allocate
from mopeq_hub.allocation.knapsack import Choices, Costs, Sizes, choose, near_optimum, optimum
from mopeq_hub.experts import Expert
from mopeq_hub.sensitivity import Profile


def instance(seed: int, count: int) -> tuple[Costs, Sizes, int]:
    """Experts of two shapes, whose costs mostly fall as their widths rise, and a budget between least and most."""
    random = np.random.default_rng(seed)
    weights = random.choice([64, 88], count)[:, None]
    sizes = weights * np.array([2, 3, 4]) * 8 + weights * 2
    costs = (
        random.lognormal(0, 1.5, (count, 1)) * np.array([0.127, 0.0313, 0.0081]) * random.lognormal(0, 1, (count, 3))
    )
    low, high = sizes[:, 0].sum(), sizes[:, -1].sum()
    return costs, sizes.astype(np.int64), int(low + random.random() * (high - low))


def best_total(costs: Costs, sizes: Sizes, capacity: int) -> float:
    """By HiGHS."""
    count, width = costs.shape
    one_each = block_diag([np.ones((1, width))] * count)
    matrix = vstack([one_each, csr_matrix(sizes.reshape(1, -1))])
    limits = LinearConstraint(matrix, [1] * count + [0], [1] * count + [capacity])
    options = {"mip_rel_gap": 0.0}
    return float(milp(costs.ravel(), integrality=1, bounds=Bounds(0, 1), constraints=limits, options=options).fun)


def total(costs: Costs, chosen: np.ndarray) -> float:
    return float(costs[np.arange(len(costs)), chosen].sum())


def of_other_kinds(seed: int, experts: int, others: int) -> tuple[Costs, Sizes, int]:
    """Experts of 2 to 4 bits beside matrices of many shapes of 2, 3, 4, 8 or 16."""
    random = np.random.default_rng(seed)
    count, widths = experts + others, np.array([2, 3, 4, 8, 16])
    weights = np.append(np.full(experts, 8192), random.choice([4096, 8192, 12288, 16384], others))[:, None]
    sizes = weights * widths // 8 + np.where(widths < 16, weights // 64 * (16 + widths) // 8, 0)
    lost = np.array([0.127, 0.0313, 0.0081, 2.9e-5, 0])
    costs = random.lognormal(0, 1.5, (count, 1)) * lost * random.lognormal(0, 0.3, (count, 5))
    costs[:experts, 3:] = np.inf
    low, high = sizes[:, 0].sum(), sizes[:experts, 2].sum() + sizes[experts:, 4].sum()
    return costs, sizes.astype(np.int64), int(low + random.random() * (high - low))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(0, 3))
def test_nothing_that_fits_is_better(seed: int, experts: int, others: int) -> None:
    costs, sizes, capacity = of_other_kinds(seed, experts, others)
    count = len(costs)
    every = np.array(list(product(range(5), repeat=count)))
    fitting = every[sizes[np.arange(count), every].sum(axis=1) <= capacity]
    best = costs[np.arange(count), fitting].sum(axis=1).min()
    assert total(costs, choose(costs, sizes, capacity)) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_as_good_as_an_integer_program(seed: int) -> None:
    costs, sizes, capacity = instance(seed, 200)
    best = best_total(costs, sizes, capacity)
    assert total(costs, choose(costs, sizes, capacity)) == pytest.approx(best)
    assert total(costs, near_optimum(costs, sizes, capacity)) <= 1.002 * best


def test_of_very_many_an_optimum_is_not_looked_for() -> None:
    costs, sizes, capacity = of_other_kinds(0, 3000, 200)
    assert optimum(costs, sizes, capacity) is None
    chosen = choose(costs, sizes, capacity)
    left = capacity - sizes[np.arange(len(costs)), chosen].sum()
    assert 0 <= left < sizes[:, 1].min() - sizes[:, 0].min()
    assert np.isfinite(costs[np.arange(len(costs)), chosen]).all()


@pytest.mark.parametrize("way", [choose, near_optimum])
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_no_change_of_one_or_two_experts_that_fits_would_be_better(
    way: Callable[[Costs, Sizes, int], Choices], seed: int, count: int
) -> None:
    costs, sizes, capacity = instance(seed, count)
    chosen = way(costs, sizes, capacity)
    assert sizes[np.arange(count), chosen].sum() <= capacity
    for one, other in permutations(range(count), 2) if count > 1 else [(0, 0)]:
        for choices in product(range(3), repeat=2):
            changed = chosen.copy()
            changed[[one, other]] = choices
            if sizes[np.arange(count), changed].sum() <= capacity:
                assert total(costs, changed) >= total(costs, chosen) * (1 - 1e-9)


@pytest.mark.parametrize("way", [choose, near_optimum])
def test_a_budget_for_all_gives_every_expert_what_costs_least(way: Callable[[Costs, Sizes, int], Choices]) -> None:
    costs, sizes, _ = instance(1, 20)
    chosen = way(costs, sizes, int(sizes[:, -1].sum()))
    assert np.array_equal(chosen, costs.argmin(axis=1))


def test_the_more_sensitive_expert_gets_the_more_bits_and_each_layer_its_share() -> None:
    values = {Expert(layer, index): 10.0 ** (6 * layer + 2 * index) for layer in range(2) for index in range(3)}
    room = Room(dict.fromkeys([(expert, "gate") for expert in values], (200, 300, 400)), 1800)
    profile = Profile({}, {expert: {"gate": (value,)} for expert, value in values.items()})
    across, within = (
        allocate(profile, Recipe(allocator="knapsack", budget="3bpw", scope=scope), room).by_layer()
        for scope in ("model", "layer")
    )
    assert across == {0: [2, 2, 2], 1: [4, 4, 4]}
    assert within == {0: [2, 3, 4], 1: [2, 3, 4]}
