"""Whether two profiles of one model agree on which experts lose more: numbers by expert, and their rank correlation."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mopeq_hub.experts import Expert
from mopeq_hub.sensitivity.profile import Profile

Numbers = NDArray[np.float64]


def costs_at(profile: Profile, bits: int) -> Numbers:
    """What each expert costs at a width, experts in order."""
    experts = (profile.experts[expert] for expert in sorted(profile.experts))
    return np.array([sum(profile.cost(values, bits) for values in parts.values()) for parts in experts])


def overall(profile: Profile, widths: Sequence[int]) -> Numbers:
    """One number an expert: its costs, those of each width divided by their mean, so that every width counts alike."""
    columns = [costs_at(profile, bits) for bits in widths]
    return np.sum([column / (np.abs(column).mean() or 1.0) for column in columns], axis=0)


def by_layer(profile: Profile, numbers: Numbers) -> dict[str, list[float]]:
    """Numbers of experts in order, by layer, as JSON has them."""
    layers: dict[str, list[float]] = {}
    ordered: list[Expert] = sorted(profile.experts)
    for expert, value in zip(ordered, numbers.tolist(), strict=True):
        layers.setdefault(str(expert.layer), []).append(value)
    return layers


def rank_correlation(one: Numbers, other: Numbers) -> float | None:
    """Spearman's; None where either has the same number for all experts."""
    from scipy.stats import spearmanr

    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return None
    return float(spearmanr(one, other).statistic)
