"""Packed tensors of single experts, read from where they lie: out of local files, or by ranges from the Hub."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import get_session, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from publication import Place

INDEX = "model.safetensors.index.json"
LARGEST_HEADER = 100_000_000
_DTYPES = {"I32": np.dtype("<i4"), "F16": np.dtype("<f2")}
_PARTIAL_CONTENT = 206


class TensorsError(Exception):
    """Tensors cannot be read; says why."""


class Tensors:
    """The tensors of one model, by name."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._headers: dict[str, tuple[dict[str, Any], int]] = {}

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """The tensors whose names begin with `prefix`, by the rest of their names. Raises TensorsError."""
        names = [name for name in self._files if name.startswith(prefix)]
        if not names:
            raise TensorsError(f"the publication has no tensors of {prefix.rstrip('.')}")
        for file in {self._files[name] for name in names} - self._headers.keys():
            self._headers[file] = self._read_header(file)
        with ThreadPoolExecutor(8) as pool:
            return dict(zip((name[len(prefix) :] for name in names), pool.map(self._read, names), strict=True))

    @cached_property
    def _files(self) -> dict[str, str]:
        path = self._place.file(INDEX)
        if path is None:
            raise TensorsError(f"{INDEX} cannot be read now")
        return dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])

    def _read_header(self, file: str) -> tuple[dict[str, Any], int]:
        length = int.from_bytes(self._bytes(file, 0, 8), "little")
        if length > LARGEST_HEADER:
            raise TensorsError(f"{file} has no header that can be believed")
        return json.loads(self._bytes(file, 8, 8 + length)), 8 + length

    def _read(self, name: str) -> np.ndarray:
        header, data = self._headers[self._files[name]]
        said = header[name]
        start, end = said["data_offsets"]
        found = self._bytes(self._files[name], data + start, data + end)
        try:
            return np.frombuffer(found, _DTYPES[said["dtype"]]).reshape(said["shape"])
        except (KeyError, ValueError):
            raise TensorsError(f"{name} is not a packed tensor") from None

    def _bytes(self, file: str, start: int, end: int) -> bytes:
        """Bytes from `start` up to `end` of a file of the model."""
        path = self._local(file)
        if path is None:
            return self._fetched(file, start, end)
        with path.open("rb") as content:
            content.seek(start)
            return content.read(end - start)

    def _local(self, file: str) -> Path | None:
        if self._place.folder:
            return self._place.folder / Path(file).name
        kept = try_to_load_from_cache(self._place.name, file, revision=self._place.revision)
        return Path(kept) if isinstance(kept, str) else None

    def _fetched(self, file: str, start: int, end: int) -> bytes:
        url = hf_hub_url(self._place.name, file, revision=self._place.revision)
        headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}"}
        with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
            hf_raise_for_status(response)
            # A server that knows no ranges would send the whole file.
            if response.status_code != _PARTIAL_CONTENT:
                raise TensorsError(f"{file} cannot be read in parts where it is")
            return b"".join(_at_most(response.iter_bytes(), end - start))


def _at_most(parts: Iterator[bytes], count: int) -> Iterator[bytes]:
    for part in parts:
        yield part[:count]
        count -= len(part)
        if count <= 0:
            return
