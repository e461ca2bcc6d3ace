"""Weights in torch's zip files (pytorch_model*.bin): which tensors they hold and where, from their lists alone.

Such a file is a zip archive of stored records: `data.pkl`, a pickle that lists the tensors, and a record of bytes for
each storage. Only torch's weights-only loader reads the pickle, on the meta device, from a small archive with the same
list and empty records; so it runs nobody's code and no weight need be here. Data are then mapped from the file as it
is.
"""

import io
import re
import struct
import zipfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mopeq_hub.errors import MopeqError
from mopeq_hub.tensors import ITEM_BYTES, MAX_HEADER_BYTES, MAX_LENGTH, MAX_RANK, Files, TensorInfo, damaged

if TYPE_CHECKING:
    import torch

LOCAL_HEADER_BYTES = 30
_SIGNATURE = b"PK\x03\x04"
_TAIL_BYTES = 256_000
"""Fetched at once from the end of the file: the archive's directory, of some thousand records."""
_LISTS = ("data.pkl", "byteorder", "version")
_HINT = "use a source in safetensors, or save its state dict again with torch.save"


def read_listing(files: Files, shard: str) -> list[TensorInfo]:
    """The tensors of one file, in the order of their data.

    Raises MopeqError on torch's old format, on a pickle that holds anything but tensors by name, and on a list that
    cannot be true.
    """
    where = f"{shard} of {files.name}"
    if files.part(shard, 0, 4) != _SIGNATURE:
        raise MopeqError(f"{where} is not in torch's zip format, the only one of its formats that is read", _HINT)
    try:
        archive = zipfile.ZipFile(_Ranges(files, shard))
        lists, records = _sorted(archive, where)
        listed, small = _small(lists, records)
        state = _load(listed, where)
    # What zipfile knows of and does not read, such as encryption, it calls not implemented.
    except (zipfile.BadZipFile, NotImplementedError, struct.error, UnicodeDecodeError, EOFError) as error:
        raise damaged(where, str(error) or type(error).__name__) from None
    infos = [_tensor_info(name, tensor, small, shard, where) for name, tensor in state.items()]
    return sorted(infos, key=lambda info: (info.record, info.start, info.end))


def data_start(local_header: bytes, where: str) -> int:
    """How many bytes after its beginning the data of a zip record begin, of whose header these are the first 30."""
    if len(local_header) < LOCAL_HEADER_BYTES or local_header[:4] != _SIGNATURE:
        raise damaged(where, "a record does not begin where its directory says")
    name, extra = struct.unpack_from("<HH", local_header, 26)
    return int(LOCAL_HEADER_BYTES + name + extra)


class _Ranges(io.RawIOBase):
    """A file of which only what is read is fetched; no more than a header may have."""

    def __init__(self, files: Files, shard: str) -> None:
        self._files, self._shard, self._size = files, shard, files.files()[shard]
        self._position, self._budget = 0, MAX_HEADER_BYTES
        self._tail_start = max(0, self._size - _TAIL_BYTES)
        self._tail: bytes | None = None

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise zipfile.BadZipFile("it points before its beginning")
        self._position = base + offset
        return self._position

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        count = left if count < 0 else min(count, left)
        self._budget -= count
        if self._budget < 0:
            raise zipfile.BadZipFile("its list of tensors is too long to be one")
        found = self._read(count)
        self._position += len(found)
        return found

    def _read(self, count: int) -> bytes:
        if self._position < self._tail_start:
            return self._files.part(self._shard, self._position, count)
        if self._tail is None:
            self._tail = self._files.part(self._shard, self._tail_start, self._size - self._tail_start)
        start = self._position - self._tail_start
        return self._tail[start : start + count]


def _sorted(archive: zipfile.ZipFile, where: str) -> tuple[dict[str, bytes], dict[str, zipfile.ZipInfo]]:
    """The records with the list of tensors, and the storages' records by the rest of their name."""
    lists: dict[str, bytes] = {}
    records: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise damaged(where, "its records are compressed, which torch does not do")
        if name in lists or name in records:
            raise damaged(where, f"it has the record {name} twice")
        if name.startswith("data/"):
            records[name] = info
        elif name in _LISTS:
            lists[name] = archive.read(info)
    if "data.pkl" not in lists:
        raise damaged(where, "it has no list of tensors")
    if lists.get("byteorder", b"little") != b"little":
        raise MopeqError(f"{where} was written on a big-endian machine", _HINT)
    return lists, records


def _small(
    lists: Mapping[str, bytes], records: Mapping[str, zipfile.ZipInfo]
) -> tuple[io.BytesIO, dict[int, zipfile.ZipInfo]]:
    """An archive with the same list and empty storages; each storage's record by where its data would begin in it."""
    buffer = io.BytesIO()
    placed: dict[int, zipfile.ZipInfo] = {}
    with zipfile.ZipFile(buffer, "w") as small:
        for name, data in {"version": b"3\n", **lists}.items():
            small.writestr(f"archive/{name}", data)
        for name, info in records.items():
            entry = zipfile.ZipInfo(f"archive/{name}")
            small.writestr(entry, b"")
            placed[entry.header_offset + LOCAL_HEADER_BYTES + len(entry.filename.encode())] = info
    buffer.seek(0)
    return buffer, placed


def _load(listed: io.BytesIO, where: str) -> "dict[str, torch.Tensor]":
    """Tensors on the meta device by their names. Raises MopeqError where the pickle holds anything else."""
    import torch

    try:
        state: Any = torch.load(listed, map_location="meta", weights_only=True)
    except Exception as error:
        # What the loader raises about a pickle that it refuses is of many kinds, each with a page of advice.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f" ({named[1][:80]})" if named else ""
        raise MopeqError(
            f"{where} holds something other than tensors{found}, which can run code when read", _HINT
        ) from None
    if not isinstance(state, dict):
        raise MopeqError(f"{where} holds no tensors by name but {_kind(state)}", _HINT)
    for name, value in state.items():
        if type(name) is not str or type(value) not in (torch.Tensor, torch.nn.Parameter):
            raise MopeqError(f"{where} holds something other than tensors: {str(name)[:80]!r} is {_kind(value)}", _HINT)
        if value.layout != torch.strided or value.device.type != "meta" or value.is_quantized:
            raise MopeqError(f"{str(name)[:80]} in {where} is a tensor of a kind that is not supported", _HINT)
    return dict(state)


def _tensor_info(
    name: str, tensor: "torch.Tensor", placed: Mapping[int, zipfile.ZipInfo], shard: str, where: str
) -> TensorInfo:
    shape, dtype = tuple(tensor.shape), _DTYPES.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise MopeqError(f"{name} in {where} has the dtype {tensor.dtype}, which is not supported", _HINT)
    if len(shape) > MAX_RANK or any(length >= MAX_LENGTH for length in shape):
        raise damaged(where, f"{name} of shape {list(shape)} is no tensor")
    if not tensor.is_contiguous():
        raise MopeqError(f"{name} in {where} is a view whose values do not follow one another", _HINT)
    storage = tensor.untyped_storage()
    record = placed.get(getattr(storage, "_checkpoint_offset", -1))
    if record is None:
        raise damaged(where, f"{name} has no data")
    start = int(tensor.storage_offset()) * ITEM_BYTES[dtype]
    end = start + tensor.numel() * ITEM_BYTES[dtype]
    if end > record.file_size or storage.nbytes() > record.file_size:
        raise damaged(where, f"{name} needs {end:,} bytes of a record of {record.file_size:,}")
    return TensorInfo(name, dtype, shape, shard, start, end, record.header_offset)


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


_DTYPES = {
    "float64": "F64", "int64": "I64", "uint64": "U64", "float32": "F32", "int32": "I32", "uint32": "U32",
    "float16": "F16", "bfloat16": "BF16", "int16": "I16", "uint16": "U16", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
