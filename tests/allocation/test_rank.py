"""Widths by rank: parts of the order of the sensitivities, as near to the budget as parts of that kind come."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mopeq_hub import Recipe
from mopeq_hub.allocation import Room, allocate
from mopeq_hub.allocation.rank import cut_by_rank
from mopeq_hub.experts import Expert
from mopeq_hub.sensitivity import Profile


def test_a_budget_halfway_cuts_into_equal_parts() -> None:
    values = {Expert(0, index): float(index) for index in range(9)}
    room = Room(dict.fromkeys([(expert, "gate") for expert in values], (200, 300, 400)), 9 * 300)
    profile = Profile({}, {expert: {"gate": (value,)} for expert, value in values.items()})
    bitmap = allocate(profile, Recipe(allocator="rank", budget="3bpw"), room)
    assert bitmap.by_layer() == {0: [2, 2, 2, 3, 3, 3, 4, 4, 4]}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.1, 1e6), min_size=1, max_size=60), st.floats(0, 1))
def test_the_budget_is_met_and_nearly_spent_and_widths_rise_with_sensitivity(values: list[float], share: float) -> None:
    sizes = np.tile(np.array([200, 300, 400], np.int64), (len(values), 1))
    capacity = int(200 * len(values) * (1 + share))
    chosen = cut_by_rank(values, sizes, capacity)
    spent = sizes[np.arange(len(values)), chosen].sum()
    assert capacity - 300 <= spent <= capacity or spent == 200 * len(values) or share == 1
    assert (np.diff(chosen[np.argsort(values, kind="stable")]) >= 0).all()


def test_the_smallest_and_the_largest_budget_give_everyone_the_same() -> None:
    sizes = np.tile(np.array([200, 300, 400], np.int64), (5, 1))
    assert cut_by_rank([1.0, 2.0, 3.0, 4.0, 5.0], sizes, 1000).tolist() == [0] * 5
    assert cut_by_rank([1.0, 2.0, 3.0, 4.0, 5.0], sizes, 2000).tolist() == [2] * 5
