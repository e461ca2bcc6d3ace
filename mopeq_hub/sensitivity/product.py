"""The Hessian trace times the activation frequency: the combination that MoPEQ (arXiv 2509.02512) studies beside both.

Each is divided by its largest value over all experts of the model, so that units do not matter; what the product gives
an expert is shared out to its projections as the trace is.
"""

from typing import Any

from mopeq_hub.experts import Expert
from mopeq_hub.recipe import Recipe
from mopeq_hub.sensitivity import by_running, hessian
from mopeq_hub.sensitivity.profile import Profile

NAME = "hessian*frequency"


def settings(recipe: Recipe) -> dict[str, Any]:
    """What a profile says of how it was measured."""
    return {**hessian.settings(recipe), **by_running.settings(recipe), "name": NAME}


def product(traces: Profile, frequencies: Profile, signal: dict[str, Any]) -> Profile:
    """The profile of the two signals multiplied, of the same experts."""
    wholes = traces.sensitivities
    trace, frequency = _normalised(wholes), _normalised(frequencies.sensitivities)
    experts = {}
    for expert, parts in traces.experts.items():
        whole, number = wholes[expert] or 1.0, trace[expert] * frequency[expert]
        experts[expert] = {name: (values[0] / whole * number,) for name, values in parts.items()}
    return Profile(signal, experts, traces.source_commit)


def _normalised(values: dict[Expert, float]) -> dict[Expert, float]:
    largest = max(map(abs, values.values())) or 1.0
    return {expert: value / largest for expert, value in values.items()}
