"""The paper's allocator: clusters by sensitivity, more bits for the more sensitive, every degenerate input defined."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mopeq_hub import Recipe
from mopeq_hub.allocation import allocate
from mopeq_hub.allocation.kmeans import cluster
from mopeq_hub.experts import Expert
from mopeq_hub.sensitivity import Profile


def profile(*layers: list[float]) -> Profile:
    values = {
        Expert(layer, index): {"gate": (value / 2,), "down": (value / 2,)}
        for layer, row in enumerate(layers)
        for index, value in enumerate(row)
    }
    return Profile({"name": "hessian"}, values)


def test_the_more_sensitive_cluster_gets_the_more_bits() -> None:
    assert cluster([1.0, 1.1, 5.0, 5.1, 9.0, 9.1], (2, 3, 4), 0) == [2, 2, 3, 3, 4, 4]
    assert cluster([9.0, 1.0, 5.0], (2, 3, 4), 0) == [4, 2, 3]


def test_scope_model_lets_all_experts_compete_and_layer_those_of_a_layer() -> None:
    values = profile([1.0, 2.0, 3.0], [101.0, 102.0, 103.0])
    across = allocate(values, Recipe(bits=(2, 4))).by_layer()
    within = allocate(values, Recipe(bits=(2, 3, 4), scope="layer")).by_layer()
    assert across == {0: [2, 2, 2], 1: [4, 4, 4]}
    assert within == {0: [2, 3, 4], 1: [2, 3, 4]}


def test_one_width_is_the_uniform_baseline() -> None:
    assert allocate(profile([1.0, 2.0], [3.0, 4.0]), Recipe(bits=(3,))).by_layer() == {0: [3, 3], 1: [3, 3]}


@pytest.mark.parametrize("values", [[7.0, 7.0, 7.0, 7.0], [5.0]])
def test_experts_that_cannot_be_told_apart_get_the_highest_width(values: list[float]) -> None:
    assert set(cluster(values, (2, 3, 4), 0)) == {4}


def test_fewer_different_values_than_widths_use_the_highest_widths() -> None:
    assert cluster([1.0, 1.0, 2.0], (2, 3, 4), 0) == [3, 3, 4]
    assert cluster([2.0, 1.0], (2, 3, 4, 8), 0) == [8, 4]


def test_values_that_differ_far_behind_the_comma_are_clustered_too() -> None:
    values = [1e6 + delta for delta in (0.0, 0.001, 0.5, 0.501, 1.0, 1.001)]
    assert cluster(values, (2, 3, 4), 0) == [2, 2, 3, 3, 4, 4]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=40), st.sets(st.sampled_from([2, 3, 4, 8]), min_size=1))
def test_widths_never_fall_as_sensitivity_rises(values: list[float], widths: set[int]) -> None:
    bits = cluster(values, sorted(widths), 0)
    ordered = [bits[position] for position in np.argsort(values, kind="stable")]
    assert ordered == sorted(ordered)
    assert set(bits) <= widths
    assert max(bits) == max(widths)


def test_the_same_seed_gives_the_same_map() -> None:
    values = profile([float(value) for value in np.random.default_rng(0).lognormal(size=64)])
    assert allocate(values, Recipe()) == allocate(values, Recipe())
