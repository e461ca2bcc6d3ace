"""A job done by as many threads as torch uses: by torch's own, where its OpenMP takes work from others.

Two pools of threads on the same cores wait for each other: threads of OpenMP spin for a while before they sleep. Where
torch's cannot be asked (its OpenMP is LLVM's, on macOS, or Microsoft's), threads of Python's do the work.
"""

import ctypes
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mopeq_hub.kernels.jobs import HEADER_WORDS, Kind, worker

_Parallel = Callable[[int, int, int, int], None]


class Job:
    """What threads do, as often as it is run."""

    def __init__(self, kind: Kind, pieces: int, counters: int = 0, **words: int) -> None:
        """words: by name those of its kind that are known. counters: how many it has."""
        # Copied more quickly than an array of ctypes, which is felt where matrices are small.
        self._words = array("q", (0, pieces, kind.number, 0, *(0,) * (len(kind.words) + counters)))
        self._places, self._pieces = _places(kind), pieces
        self._write(self._words, words)

    def _write(self, job: "array[int]", words: dict[str, int]) -> None:
        for name, value in words.items():
            job[self._places[name]] = value

    def run(self, **words: int) -> None:
        """words: the others."""
        if not self._pieces:
            return
        job = self._words[:]
        self._write(job, words)
        address, threads = job.buffer_info()[0], min(torch.get_num_threads(), self._pieces)
        parallel = _torchs_threads()
        if parallel is not None:
            parallel(_address(), address, threads, 0)
            return
        others = [_pool(threads).submit(_worker(), address) for _ in range(1, threads)]
        _worker()(address)
        for other in others:
            other.result()


@cache
def _places(kind: Kind) -> dict[str, int]:
    """Where a job has the words of its kind."""
    return {name: HEADER_WORDS + number for number, name in enumerate(kind.words)}


@cache
def _address() -> int:
    return int(worker().address)


@cache
def _torchs_threads() -> _Parallel | None:
    """`GOMP_parallel`, called with a function, its argument, a number of threads and flags, of the OpenMP that torch
    computes with; None where that has none."""
    found = sorted((Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*"))
    try:
        function = ctypes.CDLL(str(found[0])).GOMP_parallel
    except (IndexError, OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    function.restype = None
    return function  # type: ignore[no-any-return]


@cache
def _worker() -> Any:
    """The worker as Python calls it, without its lock."""
    return ctypes.CFUNCTYPE(None, ctypes.c_int64)(_address())


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="mopeq")
