"""How well a signal tells a model's experts apart, in words."""

from typing import Any

ALIKE = 0.1
"""Coefficient of variation of all experts under which they hardly differ. With half of them at 2 and half at 3 bits,
the best order of values that vary so little loses 5% less than a random one: 0.8 times this (half of a normal
distribution) times (0.127 - 0.031) / (0.127 + 0.031), by the shares that the two widths lose. Untrained weights vary by
0.005 to 0.01 under the Hessian trace."""
GROUPED = 0.7
"""Silhouette from which clusters stand apart: Kaufman and Rousseeuw's "strong structure". Three clusters of normally
distributed values have 0.52 to 0.56, of evenly distributed ones 0.58 to 0.65: what k-means makes of one lump."""


def in_words(spread: dict[str, Any]) -> str:
    """What a manifest's numbers of the spread say, in plain sentences."""
    varying = f"by {spread['within']:.1%} of their mean within a layer and by {spread['between']:.1%} between layers"
    silhouette = spread["silhouette"]
    clusters = "" if silhouette is None else f" (their silhouette is {silhouette:.2f}; one lump has 0.5 to 0.65)"
    if spread["all"] < ALIKE:
        return (
            f"The experts' sensitivities hardly differ: they vary {varying}. Clusters would split noise{clusters}, so "
            "which expert gets which width matters little here; another signal may tell them apart better."
        )
    if silhouette is None:
        return f"The experts' sensitivities vary {varying}."
    if silhouette >= GROUPED:
        return f"The experts' sensitivities vary {varying}, in groups that stand apart (silhouette {silhouette:.2f})."
    return f"The experts' sensitivities vary {varying}, without gaps: clusters{clusters} are cuts through them."
