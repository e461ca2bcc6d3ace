"""Output shards: planned from shapes alone, then filled tensor by tensor in any order, in the memory of one tensor."""

import json
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np

from mopeq_hub.checkpoint import INDEX_NAME, ITEM_BYTES


class TensorPlan(NamedTuple):
    """A tensor that will be written: safetensors' name of the dtype, and the shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class ShardPlan:
    """One output file and the tensors in it."""

    file: str
    tensors: tuple[TensorPlan, ...]

    def header(self) -> tuple[bytes, dict[str, int]]:
        """The file's header, and each tensor's offset in the file.

        Widest items first, then by name, as safetensors itself orders them, so that every tensor is aligned to its
        items. Data begin at a multiple of 64 bytes: packed weights that are computed with where they are mapped lie on
        whole cache lines then.
        """
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offsets: dict[str, int] = {}
        position = 0
        for tensor in sorted(self.tensors, key=lambda tensor: (-ITEM_BYTES[tensor.dtype], tensor.name)):
            end = position + tensor.nbytes
            entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
            offsets[tensor.name] = position
            position = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % 64)
        return struct.pack("<Q", len(text)) + text, {name: 8 + len(text) + offset for name, offset in offsets.items()}


def fill_shards(tensors: Sequence[TensorPlan], shard_size: int) -> list[list[TensorPlan]]:
    """Fill shards in the given order; a new one is begun where the next tensor would pass `shard_size` bytes."""
    groups: list[list[TensorPlan]] = [[]]
    filled = 0
    for tensor in tensors:
        nbytes = tensor.nbytes
        if groups[-1] and filled + nbytes > shard_size:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += nbytes
    return groups


def named(parts: Sequence[Sequence[Sequence[TensorPlan]]]) -> list[list[ShardPlan]]:
    """The same shards, part by part, with the names that `from_pretrained` expects, numbered through all parts."""
    total = sum(len(part) for part in parts)
    numbers = iter(range(1, total + 1))
    return [
        [ShardPlan(f"model-{next(numbers):05d}-of-{total:05d}.safetensors", tuple(shard)) for shard in part]
        for part in parts
    ]


class ShardWriter:
    """Writes the planned shards into a folder; `write` may be called in any order, once for each tensor."""

    def __init__(self, folder: Path, shards: Sequence[ShardPlan]) -> None:
        self._folder = folder
        self._files: dict[str, int] = {}
        self._place: dict[str, tuple[str, int, TensorPlan]] = {}
        self._left: dict[str, set[str]] = {}
        self._headers: dict[str, bytes] = {}
        for shard in shards:
            self._headers[shard.file], offsets = shard.header()
            self._left[shard.file] = set(offsets)
            for tensor in shard.tensors:
                self._place[tensor.name] = (shard.file, offsets[tensor.name], tensor)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        unwritten = sum(len(names) for names in self._left.values())
        if error is None and unwritten:
            raise ValueError(f"{unwritten} planned tensors were not written")

    def write(self, name: str, data: np.ndarray) -> None:
        """Put the bytes of a C-ordered array at the tensor's place; a shard's file is closed with its last tensor."""
        file, offset, tensor = self._place[name]
        try:
            self._write(file, offset, tensor, data)
        except OSError as error:
            # The system does not say which file it was about.
            error.filename = str(self._folder / file)
            raise

    def _write(self, file: str, offset: int, tensor: TensorPlan, data: np.ndarray) -> None:
        name = tensor.name
        if data.nbytes != tensor.nbytes:
            raise ValueError(f"{name} has {data.nbytes} bytes where {tensor.nbytes} were planned")
        if file not in self._files:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            self._files[file] = os.open(self._folder / file, flags, 0o644)
            _write_all(self._files[file], self._headers[file], 0)
        _write_all(self._files[file], np.ascontiguousarray(data).reshape(-1).view(np.uint8), offset)
        self._left[file].remove(name)
        if not self._left[file]:
            os.close(self._files.pop(file))


def write_stand_in(folder: Path, shard: ShardPlan) -> None:
    """A file of the shard's name, header and length whose data was never written: it takes no room."""
    header, _ = shard.header()
    with open(folder / shard.file, "wb") as file:
        file.write(header)
        file.truncate(len(header) + sum(tensor.nbytes for tensor in shard.tensors))


def write_index(folder: Path, shards: Sequence[ShardPlan]) -> None:
    """The index that `from_pretrained` reads to find each tensor's file."""
    weight_map = {tensor.name: shard.file for shard in shards for tensor in shard.tensors}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _write_all(descriptor: int, data: bytes | np.ndarray, offset: int) -> None:
    view = memoryview(data)  # type: ignore[arg-type]
    while len(view):
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
