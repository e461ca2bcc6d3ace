"""Small pieces of work side by side, each on one thread: kernels and torch have pools of their own, whose threads would
wait for each other by spinning, and sums that are split over threads depend on their number."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def each_alone(work: Sequence[Callable[[], Result]]) -> Iterator[Result]:
    """What each piece of work gives, in order; no gradients are kept. As many run at once as there are threads."""
    import numba
    import torch

    def alone(piece: Callable[[], Result]) -> Result:
        with torch.inference_mode():
            return piece()

    def begin() -> None:
        numba.set_num_threads(1)  # type: ignore[attr-defined]
        torch.set_num_threads(1)

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1, "alone", begin) as pool:
            yield from pool.map(alone, work[:1])
        # Numba's own pool may be entered by one thread at a time; which pool it has is known once it was used.
        count = 1 if _numba_pool() == "workqueue" else min(threads, os.cpu_count() or 1)
        with ThreadPoolExecutor(count, "alone", begin) as pool:
            yield from pool.map(alone, work[1:])
    finally:
        torch.set_num_threads(threads)


def _numba_pool() -> str:
    import numba

    try:
        return str(numba.threading_layer())  # type: ignore[attr-defined]
    except ValueError:
        return "workqueue"
