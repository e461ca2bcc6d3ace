"""Which of several budgets is recommended."""

from typing import Any

import pytest

from mopeq_hub.fidelity.variants import CLOSE, in_order, is_close, recommended


def variant(name: str, size: int, top1: float, kl: float) -> dict[str, Any]:
    return {"name": name, "bytes": size, "top1_agreement": top1, "kl": {"mean": kl, "p99": 10 * kl}}


SMALL, MIDDLE, LARGE = (
    variant("2.5bpw", 250, 0.98, 0.03),
    variant("3.0bpw", 300, CLOSE, 0.02),
    variant("3.5bpw", 350, 0.999, 0.01),
)


@pytest.mark.parametrize(
    ("variants", "name"),
    [
        ((LARGE, MIDDLE, SMALL), "3.0bpw"),
        ((SMALL, LARGE), "3.5bpw"),
        ((SMALL, variant("2.6bpw", 260, 0.97, 0.029)), "2.6bpw"),
        ((variant("a", 250, 0.995, 0.03), variant("b", 250, 0.995, 0.02)), "b"),
    ],
)
def test_it_is_the_smallest_that_is_close_or_else_the_one_with_the_least_kl(
    variants: tuple[dict[str, Any], ...], name: str
) -> None:
    assert recommended(variants)["name"] == name


def test_close_is_at_least_that_share_of_the_tokens() -> None:
    assert [is_close(each) for each in in_order((LARGE, SMALL, MIDDLE))] == [False, True, True]
