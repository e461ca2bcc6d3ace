"""What a measurement has come to, kept in a folder, so that another process can go on from there.

A state is dicts, lists, tuples, plain values and tensors. Tensors go into one safetensors file, everything else into
state.json, which is replaced last: whoever is killed while writing leaves the state before.
"""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch

from mopeq_hub.errors import MopeqError
from mopeq_hub.questions.inputs import Row

_STATE = "state.json"


def digest(rows: list[Row]) -> str:
    """SHA-256 of the rows' tokens, of where their answers begin, and of their pictures."""
    whole = hashlib.sha256()
    for row in rows:
        whole.update(f"{row.prompt} {sorted(row.inputs)}".encode())
        for name in sorted(row.inputs):
            whole.update(row.inputs[name].contiguous().numpy().tobytes())
    return whole.hexdigest()


def write(folder: Path, state: dict[str, Any]) -> None:
    """Replace what the folder holds by `state`; the folder is made if need be."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, torch.Tensor] = {}
    described = _describe(state, tensors, {})
    file = f"tensors-{uuid.uuid4().hex}.safetensors"
    save_file(tensors, folder / file)
    new = folder / f"{_STATE}.new"
    new.write_text(json.dumps({"file": file, "state": described}), "utf-8")
    os.replace(new, folder / _STATE)
    for other in folder.glob("tensors-*.safetensors"):
        if other.name != file:
            other.unlink()


def read(folder: Path) -> dict[str, Any] | None:
    """The state that the folder holds, or None. Raises MopeqError where it cannot be read."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / _STATE).is_file():
        return None
    try:
        content = json.loads((folder / _STATE).read_text("utf-8"))
        state = _restore(content["state"], load_file(folder / content["file"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise MopeqError(f"the measurement kept in {folder} cannot be read: {error}", "delete that folder") from None
    return dict(state)


def _describe(value: Any, tensors: dict[str, torch.Tensor], names: dict[Any, str]) -> Any:
    """The value as JSON, its tensors collected; one that occurs twice is collected once."""
    if torch.is_tensor(value):
        key = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
        if key not in names:
            names[key] = str(len(names))
            alone = value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
            tensors[names[key]] = value if alone else value.clone(memory_format=torch.contiguous_format)
        return {"tensor": names[key]}
    if isinstance(value, dict):
        return {"dict": {name: _describe(part, tensors, names) for name, part in value.items()}}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_describe(part, tensors, names) for part in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    raise MopeqError(
        f"a text model is given a {type(value).__name__}, which cannot be kept for another run", "run it in one go"
    )


def _restore(described: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    ((kind, value),) = described.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {name: _restore(part, tensors) for name, part in value.items()}
    if kind in ("list", "tuple"):
        parts = [_restore(part, tensors) for part in value]
        return parts if kind == "list" else tuple(parts)
    return value
