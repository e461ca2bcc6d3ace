"""Profile: the sensitivity of every expert, with how it was measured; the file profile.json."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Expert


@dataclass(frozen=True)
class Profile:
    """expert -> sensitivity, a finite number, for each routed expert of a model.

    signal: the method's name and the settings that matter to it, for example {"name": "hessian", "estimator": "exact"}.
    source_commit: of the weights that were measured.
    """

    signal: dict[str, Any]
    sensitivities: dict[Expert, float]
    source_commit: str = ""

    def __post_init__(self) -> None:
        for expert, value in self.sensitivities.items():
            if not math.isfinite(value):
                raise MopeqError(
                    f"the sensitivity of expert {expert.index} in layer {expert.layer} is {value}",
                    "the source holds values it should not; check it for NaN and infinity",
                )

    def by_layer(self) -> dict[int, list[float]]:
        """The sensitivities of each layer's experts, in the experts' order."""
        layers: dict[int, list[float]] = {}
        for expert, value in sorted(self.sensitivities.items()):
            layers.setdefault(expert.layer, []).append(value)
        return layers

    def write(self, path: Path) -> None:
        layers = {str(layer): values for layer, values in self.by_layer().items()}
        content = {"signal": self.signal, "source_commit": self.source_commit, "layers": layers}
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Profile":
        """Raises MopeqError where the file is not a profile."""
        try:
            content = json.loads(path.read_text("utf-8"))
            sensitivities = {
                Expert(int(layer), index): float(value)
                for layer, values in content["layers"].items()
                for index, value in enumerate(values)
            }
            return cls(dict(content["signal"]), sensitivities, str(content["source_commit"]))
        except OSError as error:
            raise MopeqError(f"{path} cannot be read: {error.strerror}", "name a profile.json") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise MopeqError(
                f"{path} is not a profile", "name a profile.json that `mopeq-hub plan --save-profile` wrote"
            ) from None
