"""What the process of a calibrated quantizer hands over to the one that asked: packed weights, and a result."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mopeq_hub.calibration import Inputs
from mopeq_hub.packing import Packed


def save(job: dict[str, Any], layer: int, weights: Mapping[str, Packed]) -> None:
    """Keep the packed weights of one decoder layer, by the names of their matrices, for the process that asked."""
    from safetensors.numpy import save_file

    tensors = {f"{name}.{part}": data for name, packed in weights.items() for part, data in packed.tensors().items()}
    save_file(tensors, Path(job["target"]) / f"{layer}.safetensors")


def finish(job: dict[str, Any], inputs: list[Inputs], reached: Mapping[int, set[int]]) -> None:
    """Write the result; `reached` are the experts of each layer that a token was sent to."""
    tokens = sum(batch[name].numel() for batch in inputs for name in batch if name.endswith("input_ids"))
    experts = {str(layer): sorted(seen) for layer, seen in reached.items()}
    Path(job["result"]).write_text(json.dumps({"tokens": tokens, "reached": experts}), "utf-8")
