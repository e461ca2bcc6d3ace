"""Rank correlation of two signals: what the order of the experts says, whatever the units."""

import numpy as np
import pytest

from mopeq_hub.experts import Expert
from mopeq_hub.sensitivity import Profile
from mopeq_hub.sensitivity.agreement import by_layer, costs_at, overall, rank_correlation


def profile(*costs: tuple[float, ...], widths: tuple[int, ...] = ()) -> Profile:
    """Of experts 0, 1, ... in layers of two, each with its costs in one projection and as much again in another."""
    experts = {Expert(number // 2, number % 2): {"gate": values, "down": values} for number, values in enumerate(costs)}
    return Profile({"name": "made up"}, experts, "", widths)


def test_only_the_order_counts() -> None:
    one, other = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.1, 5.0, 70.0, 71.0])
    assert rank_correlation(one, other) == pytest.approx(1)
    assert rank_correlation(one, -other) == pytest.approx(-1)


def test_a_signal_that_tells_no_experts_apart_has_no_correlation() -> None:
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None
    assert rank_correlation(np.arange(4.0), np.ones(4)) is None


def test_an_expert_costs_what_its_projections_cost_together() -> None:
    costs = profile((3.0, 1.0), (5.0, 2.0), widths=(2, 4))
    assert costs_at(costs, 2).tolist() == [6, 10]
    assert costs_at(costs, 4).tolist() == [2, 4]


def test_every_width_counts_alike_however_little_it_costs() -> None:
    # At 4 bits the second expert loses more, in numbers a thousand times smaller.
    costs = profile((3.0, 0.001), (1.0, 0.003), widths=(2, 4))
    assert overall(costs, (2, 4)).tolist() == pytest.approx([2, 2])


def test_one_number_an_expert_gives_the_same_order_at_every_width() -> None:
    numbers = profile((2.0,), (1.0,), (4.0,))
    for bits in (2, 3, 4):
        assert rank_correlation(costs_at(numbers, bits), overall(numbers, (2, 3, 4))) == pytest.approx(1)


def test_numbers_are_given_layer_by_layer() -> None:
    numbers = profile((1.0,), (2.0,), (3.0,))
    assert by_layer(numbers, np.array([1.0, 2.0, 3.0])) == {"0": [1, 2], "1": [3]}
