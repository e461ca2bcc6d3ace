"""The GPU where one is lent for single calls (ZeroGPU): it exists only inside functions that `spaces.GPU` decorates.

`spaces` wants to be imported before torch; nothing in the app's own process imports torch.
"""

from collections.abc import Callable, Iterator
from typing import Any

try:
    from spaces import GPU
except ImportError:
    GPU = None

SECONDS = 120
"""For how long a GPU is asked for: to load two models and to answer once with each."""


def with_gpu(generate: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The generator function with a GPU while it runs, where one has to be asked for; else the function itself."""
    return GPU(generate, duration=SECONDS) if GPU else generate
