"""Checkpoint: what tensors a model has, from headers alone, and their data on demand, straight from the mapped files.

Files come from strangers, so a header is believed only after everything it claims was checked against the file's size.
"""

import errno
import json
import mmap
import os
import struct
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mopeq_hub import mxfp4
from mopeq_hub.errors import MopeqError
from mopeq_hub.tensors import (
    ARRAY_DTYPES,
    ITEM_BYTES,
    MAX_HEADER_BYTES,
    MAX_LENGTH,
    MAX_RANK,
    Files,
    TensorInfo,
    damaged,
)
from mopeq_hub.torch_files import LOCAL_HEADER_BYTES, data_start, read_listing
from mopeq_hub.untrusted import check_name

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
TORCH_INDEX_NAME = "pytorch_model.bin.index.json"
TORCH_SINGLE_NAME = "pytorch_model.bin"
_WEIGHTS = {INDEX_NAME: SINGLE_NAME, TORCH_INDEX_NAME: TORCH_SINGLE_NAME}
"""The index of a model in several files and the name of one in a single file, best first."""
_MAPPED_SHARDS = 2
"""Shards kept mapped: the one being read and the one before it."""


class Checkpoint:
    """The tensors of one model: `tensors` from headers alone, `tensor(name)` mapped from the file when asked for."""

    def __init__(self, files: Files, block: tuple[int, int] = (128, 128)) -> None:
        """Read and check index and headers; `block`: rows and columns of float8 that share a factor.

        Raises MopeqError on anything that does not add up.
        """
        self._files, self.block = files, block
        self._maps: dict[str, mmap.mmap] = {}
        self._data_starts: dict[tuple[str, int], int] = {}
        # The factors last read from another file than their matrix's, which a stack of matrices asks for one by one.
        self._far: tuple[str, np.ndarray] | None = None
        self.shards = _shards(files)
        self.tensors: dict[str, TensorInfo] = {}
        for shard in self.shards:
            read = read_header if shard.endswith(".safetensors") else read_listing
            for info in read(files, shard):
                if info.name in self.tensors:
                    raise MopeqError(
                        f"tensor {info.name} of {files.name} is in both {self.tensors[info.name].file} and {shard}",
                        "the source is damaged; download or save it again",
                    )
                self.tensors[info.name] = info
        self._check_index()
        self.tensors, self._pairs = mxfp4.joined(self.tensors, files.name)
        self._unpacked: tuple[tuple[str, int], np.ndarray] | None = None

    def _check_index(self) -> None:
        index = _index(self._files)
        if index is None:
            return
        listed = _weight_map(self._files, index)
        found = {name: info.file for name, info in self.tensors.items()}
        for name in sorted(set(listed) | set(found)) if listed != found else ():
            if listed.get(name) != found.get(name):
                raise MopeqError(
                    f"{index} of {self._files.name} says {name} is in {listed.get(name, 'no file')}, "
                    f"but it is in {found.get(name, 'no file')}",
                    "the index and the shards are from different saves; download or save the source again",
                )

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all tensors together."""
        return sum(self.bytes_stored_as.values()) + sum(scales.nbytes for _, scales in self._pairs.values())

    @cached_property
    def largest(self) -> TensorInfo:
        """The tensor that takes most bytes."""
        return max(self.tensors.values(), key=lambda info: info.end - info.start)

    @cached_property
    def size(self) -> int:
        """How many numbers all tensors have together."""
        return sum(info.size for info in self.tensors.values())

    @cached_property
    def bytes_stored_as(self) -> dict[str, int]:
        """Bytes of all tensors together, by the dtype that they are stored in."""
        stored: dict[str, int] = {}
        for info in self.tensors.values():
            stored[info.dtype] = stored.get(info.dtype, 0) + info.end - info.start
        return stored

    def array(self, name: str) -> np.ndarray:
        """The tensor as it lies in the mapped file: no copy, pages are read when touched. It cannot be written to.

        bfloat16 comes as uint16, float8 as uint8, since NumPy has neither.
        """
        return self._array(self.tensors[name])

    def _array(self, info: TensorInfo) -> np.ndarray:
        if info.nbytes == 0:
            return np.empty(info.shape, ARRAY_DTYPES[info.dtype])
        mapped, position = self._mapped(info.file), self._position(info)
        if position + info.nbytes > len(mapped):
            raise damaged(f"{info.file} of {self._files.name}", f"it ends within {info.name}")
        count = info.nbytes // ITEM_BYTES[info.dtype]
        flat = np.frombuffer(mapped, ARRAY_DTYPES[info.dtype], count, position)
        # A zip archive that torch did not write may begin its records anywhere.
        return (flat if flat.flags.aligned else flat.copy()).reshape(info.shape)

    def unpacked(self, name: str, index: int) -> np.ndarray:
        """One matrix [out, in] of a stack that is stored as MXFP4, bfloat16 as uint16."""
        # Those in it are asked for one after another.
        if self._unpacked is None or self._unpacked[0] != (name, index):
            blocks, scales = self._pairs[name]
            factors = self._scales(blocks, scales)
            self._unpacked = (name, index), mxfp4.unpacked(self._array(blocks)[index], factors[index])
        return self._unpacked[1]

    def scale_of(self, name: str) -> str | None:
        """The tensor that holds the factors of a float8 tensor's blocks, None where it has none."""
        scale = f"{name}_scale_inv"
        fitting = scale in self.tensors and self.tensors[name].dtype == "F8_E4M3"
        return scale if fitting and self.tensors[scale].dtype in ("F32", "BF16") else None

    def factors(self, name: str, index: int | None = None) -> np.ndarray:
        """Of each 16 x 16 numbers of a float8 matrix [rows, columns], or of one of a stack of them, float32.

        They may lie in another file than the matrix and are read without fetching that.
        """
        info, scale = self.tensors[name], self.tensors[str(self.scale_of(name))]
        blocks = self._scales(info, scale)
        blocks = blocks if index is None else blocks[index]
        if scale.dtype == "BF16":
            blocks = (blocks.astype(np.uint32) << 16).view(np.float32)
        for axis, (length, block) in enumerate(zip(info.shape[-2:], self.block, strict=True)):
            blocks = blocks.repeat(block // 16, axis).take(range(-(-length // 16)), axis)
        return blocks

    def _scales(self, info: TensorInfo, scale: TensorInfo) -> np.ndarray:
        if scale.file == info.file:
            return self._array(scale)
        if self._far is None or self._far[0] != scale.name:
            self._far = scale.name, self._apart(scale)
        return self._far[1]

    def apart(self, name: str) -> np.ndarray:
        """The tensor as `array` gives it, in memory, read without having the rest of its file here."""
        return self._apart(self.tensors[name])

    def _apart(self, info: TensorInfo) -> np.ndarray:
        raw = self._files.part(info.file, self._position(info), info.nbytes)
        return np.frombuffer(raw, ARRAY_DTYPES[info.dtype]).reshape(info.shape)

    @cached_property
    def in_file_order(self) -> tuple[TensorInfo, ...]:
        """Tensors shard by shard, each shard from its beginning: the order in which reading costs least."""
        order = {shard: position for position, shard in enumerate(self.shards)}
        return tuple(sorted(self.tensors.values(), key=lambda info: (order[info.file], info.record, info.start)))

    def is_hole(self, name: str) -> bool:
        """Whether nothing was ever written where the tensor is in its file, as far as the file system tells; what a
        download that was broken off leaves of a file of full length, and a header that somebody copied alone.

        File systems know blocks, so those that the tensor shares with its neighbours or the header are left out, where
        it has others.
        """
        info = self.tensors[name]
        begin = self._position(info)
        end = begin + info.nbytes
        with open(self._files.path(info.file), "rb") as file:
            block = getattr(os.fstat(file.fileno()), "st_blksize", 1)
            first, last = -(-begin // block) * block, end // block * block
            if first < last:
                begin, end = first, last
            try:
                return os.lseek(file.fileno(), begin, os.SEEK_DATA) >= end
            except OSError as error:
                return error.errno == errno.ENXIO
            except AttributeError:  # The system has no such question.
                return False

    def let_go(self, name: str) -> None:
        """Give the memory that holds the tensor's pages back; they are read again where they are asked for again."""
        info = self.tensors[name]
        if info.file in self._maps and info.nbytes:
            position = self._position(info)
            start = position // mmap.PAGESIZE * mmap.PAGESIZE
            self._maps[info.file].madvise(mmap.MADV_DONTNEED, start, position + info.nbytes - start)

    def close(self, shard: str) -> None:
        """Unmap a file. Arrays of it that are still in use keep it until they are gone."""
        self._maps.pop(shard, None)

    def _position(self, info: TensorInfo) -> int:
        """Where in its file the tensor's data begins."""
        key = info.file, info.record
        if key not in self._data_starts:
            self._data_starts[key] = self._data_start(info)
        return self._data_starts[key] + info.start

    def _data_start(self, info: TensorInfo) -> int:
        if info.file.endswith(".safetensors"):
            (header_bytes,) = struct.unpack("<Q", self._files.part(info.file, 0, 8))
            return 8 + int(header_bytes)
        header = self._files.part(info.file, info.record, LOCAL_HEADER_BYTES)
        return info.record + data_start(header, f"{info.file} of {self._files.name}")

    def _mapped(self, shard: str) -> mmap.mmap:
        if shard not in self._maps:
            while len(self._maps) >= _MAPPED_SHARDS:
                # Tensors of it that are still in use keep it mapped until they are gone.
                self._maps.pop(next(iter(self._maps)))
            with open(self._files.path(shard), "rb") as file:
                self._maps[shard] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[shard]


def read_header(files: Files, shard: str) -> list[TensorInfo]:
    """The tensors of one safetensors file, in the order of their data. Raises MopeqError on a header that cannot be
    true."""
    size = files.files()[shard]
    where = f"{shard} of {files.name}"
    prefix = files.part(shard, 0, 8)
    if len(prefix) < 8:
        raise damaged(where, f"it has {size} bytes, too few for a safetensors file")
    (header_bytes,) = struct.unpack("<Q", prefix)
    if header_bytes > MAX_HEADER_BYTES or header_bytes + 8 > size:
        raise damaged(where, f"its header claims {header_bytes:,} bytes of a file of {size:,}")
    try:
        entries = json.loads(files.part(shard, 0, 8 + header_bytes)[8:])
    except (ValueError, RecursionError):
        raise damaged(where, "its header is not JSON") from None
    if not isinstance(entries, dict):
        raise damaged(where, "its header is not a JSON object")
    infos = [_tensor_info(name, entry, shard, where) for name, entry in entries.items() if name != "__metadata__"]
    infos.sort(key=lambda info: (info.start, info.end))
    position = 0
    for info in infos:
        if info.start != position:
            raise damaged(where, f"the data of {info.name} begins at byte {info.start}, not at {position}")
        position = info.end
    if 8 + header_bytes + position != size:
        expected = 8 + header_bytes + position
        raise damaged(where, f"it has {size:,} bytes where its header promises {expected:,}")
    return infos


def _tensor_info(name: str, entry: Any, shard: str, where: str) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise damaged(where, f"its entry for {name} is not a tensor") from None
    whole = len(shape) <= MAX_RANK
    for number in (*shape, start, end):
        whole = whole and type(number) is int and 0 <= number < MAX_LENGTH
    if not whole:
        raise damaged(where, f"its entry for {name} holds something other than whole numbers")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise MopeqError(
            f"{name} in {where} has the dtype {dtype!r}, which is not supported", "use a 16- or 32-bit source"
        )
    expected = ITEM_BYTES[dtype]
    for length in shape:
        expected *= length
    if end - start != expected:
        raise damaged(where, f"{name} of shape {list(shape)} and {dtype} needs {expected:,} bytes, not {end - start:,}")
    return TensorInfo(name, dtype, shape, shard, start, end)


def use_safetensors(folder: Path) -> bool | None:
    """What `from_pretrained` is told of a folder's weights: True, or None where there are only torch's files, of which
    it reads tensors alone."""
    safe = any((folder / name).exists() for name in (INDEX_NAME, SINGLE_NAME))
    return True if safe else None


def _index(files: Files) -> str | None:
    """The index of the model's weights, None where they are in one file. Raises MopeqError where there are none."""
    names = files.files()
    for index, single in _WEIGHTS.items():
        if index in names:
            return index
        if single in names:
            return None
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickles:
        raise MopeqError(
            f"{files.name} holds its weights as pickle files under names that say nothing ({pickles[0]})",
            f"use a source in safetensors, or one with {TORCH_INDEX_NAME}",
        )
    raise MopeqError(
        f"{files.name} has no {INDEX_NAME} and no {SINGLE_NAME}", "name a folder or repo with a model's weights"
    )


def _shards(files: Files) -> list[str]:
    names = files.files()
    index = _index(files)
    if index is None:
        return [next(single for single in _WEIGHTS.values() if single in names)]
    shards = sorted(set(_weight_map(files, index).values()))
    for shard in shards:
        if shard not in names:
            raise MopeqError(
                f"{files.name} lacks {shard}, which its index lists", "finish the download, or save it again"
            )
    return shards


def _weight_map(files: Files, index: str) -> dict[str, str]:
    where = f"{index} of {files.name}"
    kind = ".safetensors" if index == INDEX_NAME else ".bin"
    if files.files()[index] > MAX_HEADER_BYTES:
        raise MopeqError(f"{where} is too large to be an index", "download or save it again")
    try:
        weight_map = json.loads(files.path(index).read_text("utf-8"))["weight_map"]
        entries = {str(tensor): str(shard) for tensor, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MopeqError(f"{where} is not an index of weights", "download or save it again") from None
    for shard in set(entries.values()):
        check_name(shard, where)
        if not shard.endswith(kind):
            raise MopeqError(f"{where} lists {shard}, which is not a {kind} file", "save the model as safetensors")
    return entries
