"""What is known of a tensor in a file before its data are read, and where files come from."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mopeq_hub.errors import MopeqError

MAX_HEADER_BYTES = 100_000_000
"""A file's header, index or list of tensors is not read where it claims more."""
MAX_RANK, MAX_LENGTH = 8, 1 << 48

ITEM_BYTES = {
    "F64": 8, "I64": 8, "U64": 8,
    "F32": 4, "I32": 4, "U32": 4,
    "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
ARRAY_DTYPES: dict[str, Any] = {
    "F64": np.float64, "I64": np.int64, "U64": np.uint64,
    "F32": np.float32, "I32": np.int32, "U32": np.uint32,
    "F16": np.float16, "BF16": np.uint16, "I16": np.int16, "U16": np.uint16,
    "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip


class TensorInfo(NamedTuple):
    """What a header says of one tensor; `start` and `end` are byte offsets within the data part of `file`. Large models
    have a hundred thousand, and a tuple is made at a third of what an object costs.

    record: in a zip file, the byte of the file at which the record begins whose data `start` and `end` count from.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    start: int
    end: int
    record: int = 0

    @property
    def nbytes(self) -> int:
        return self.end - self.start

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


class Files(Protocol):
    """Where a checkpoint's files come from: `mopeq_hub.source` implements it for folders and for the Hub."""

    @property
    def name(self) -> str: ...

    def files(self) -> Mapping[str, int]:
        """Every file's size in bytes by its name."""

    def path(self, name: str) -> Path:
        """A local path of the file, fetched if need be."""

    def part(self, name: str, start: int, count: int) -> bytes:
        """`count` bytes from `start` on, or as many as there are, without fetching the rest."""


def damaged(where: str, why: str) -> MopeqError:
    """The error about a file that cannot be what it claims to be."""
    return MopeqError(f"{where} is damaged: {why}", "download or save it again")
