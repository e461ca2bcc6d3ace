"""Profile: what each expert loses, by one signal, with how it was measured; the file profile.json."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Expert, Matrix

Values = tuple[float, ...]
"""Of one matrix: its sensitivity, or what each of the profile's widths costs."""
LOST = {2: 0.127, 3: 0.0313, 4: 0.0081, 8: 2.9e-5, 16: 0.0}
"""Share of the sum of squares of normally distributed weights that the search quantizer loses at each width: what a
sensitivity is multiplied by where a cost is wanted."""


def shared_out(values: Values, matrices: Sequence[Matrix]) -> dict[Matrix, Values]:
    """What is known of an expert as a whole, shared out to its projections by how many weights they have."""
    whole = sum(matrix.size for matrix in matrices)
    return {matrix: tuple(value * matrix.size / whole for value in values) for matrix in matrices}


@dataclass(frozen=True)
class Profile:
    """What a signal says of every routed expert, projection by projection.

    signal: the method's name and the settings that matter to it, for example {"name": "hessian", "estimator": "exact"}.
    experts: by expert and projection, one finite number where `widths` is empty, else the cost of each of `widths`, in
    nats of KL divergence or proportional to it; what an expert costs is the sum of its projections'.
    source_commit: of the weights that were measured.
    widths: bits per weight, rising.
    rest: as `experts`, by name, of linear layers of the text model outside the experts; empty where not measured.
    """

    signal: dict[str, Any]
    experts: Mapping[Expert, Mapping[str, Values]]
    source_commit: str = ""
    widths: tuple[int, ...] = ()
    rest: Mapping[str, Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expected = max(1, len(self.widths))
        for expert, projections in self.experts.items():
            for name, values in projections.items():
                _check(values, expected, f"{name} of expert {expert.index} in layer {expert.layer}")
        for name, values in self.rest.items():
            _check(values, expected, name)

    @property
    def sensitivities(self) -> dict[Expert, float]:
        """One number an expert: the sum of its projections', of costs at the narrowest width."""
        return {expert: sum(values[0] for values in parts.values()) for expert, parts in self.experts.items()}

    def cost(self, values: Values, bits: int) -> float:
        """What it costs to give `bits` to a matrix with these values; a sensitivity is taken times what is `LOST`.

        16 bits cost nothing. Raises MopeqError on a width that the profile was not measured at.
        """
        if bits == 16:
            return 0.0
        if not self.widths:
            return values[0] * LOST[bits]
        if bits not in self.widths:
            raise MopeqError(f"the profile holds no cost of {bits} bits", "measure again, without --profile")
        return values[self.widths.index(bits)]

    def by_layer(self) -> dict[int, list[float]]:
        """The sensitivities of each layer's experts, in the experts' order."""
        layers: dict[int, list[float]] = {}
        for expert, value in sorted(self.sensitivities.items()):
            layers.setdefault(expert.layer, []).append(value)
        return layers

    def write(self, path: Path) -> None:
        layers: dict[str, list[dict[str, list[float]]]] = {}
        for expert, parts in sorted(self.experts.items()):
            layers.setdefault(str(expert.layer), []).append({name: list(values) for name, values in parts.items()})
        content = {
            "signal": self.signal,
            "source_commit": self.source_commit,
            "widths": list(self.widths),
            "layers": layers,
            "rest": {name: list(values) for name, values in self.rest.items()},
        }
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Raises MopeqError where the file is not a profile."""
        try:
            content = json.loads(path.read_text("utf-8"))
            experts = {
                Expert(int(layer), index): {str(name): tuple(map(float, values)) for name, values in parts.items()}
                for layer, each in content["layers"].items()
                for index, parts in enumerate(each)
            }
            rest = {str(name): tuple(map(float, values)) for name, values in content["rest"].items()}
            widths = tuple(int(bits) for bits in content["widths"])
            return cls(dict(content["signal"]), experts, str(content["source_commit"]), widths, rest)
        except OSError as error:
            raise MopeqError(f"{path} cannot be read: {error.strerror}", "name a profile.json") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise MopeqError(
                f"{path} is not a profile", "name a profile.json that `mopeq-hub plan --save-profile` wrote"
            ) from None


def _check(values: Values, expected: int, what: str) -> None:
    if len(values) != expected or not all(map(math.isfinite, values)):
        raise MopeqError(
            f"the sensitivity of {what} is {', '.join(map(str, values))}",
            "the source holds values it should not; check it for NaN and infinity",
        )
