"""A job done by as many threads as torch uses: by torch's own, where its OpenMP takes work from others.

Two pools of threads on the same cores wait for each other: threads of OpenMP spin for a while before they sleep. Where
torch's cannot be asked (its OpenMP is LLVM's, on macOS, or Microsoft's), Numba's do the work.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numba
import torch

from mopeq_hub.kernels.product import worker, workers


def work(kind: int, pieces: int, *words: int) -> None:
    """Do a job of so many pieces; words: what its pieces are made by."""
    job = (ctypes.c_int64 * (3 + len(words)))(0, pieces, kind, *words)
    threads = min(torch.get_num_threads(), pieces)
    parallel = _torchs_threads()
    if parallel is not None:
        parallel(worker().address, ctypes.addressof(job), threads, 0)
        return
    threads = min(threads, numba.config.NUMBA_NUM_THREADS)
    numba.set_num_threads(threads)
    workers()(ctypes.addressof(job), threads)


@cache
def _torchs_threads() -> Any:
    """`GOMP_parallel`, called with a function, its argument, a number of threads and flags, of the OpenMP that torch
    computes with; None where that has none."""
    home = Path(torch.__file__).parent / "lib"
    found = next((path for path in sorted(home.glob("libtorch_cpu.*")) if path.suffix in (".so", ".dylib")), None)
    try:
        function = ctypes.CDLL(str(found)).GOMP_parallel if found else None
    except (OSError, AttributeError):
        return None
    if function is not None:
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
    return function
