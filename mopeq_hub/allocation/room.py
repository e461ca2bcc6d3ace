"""Room: what each expert takes at each width, and what all may take together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mopeq_hub.experts import Expert


@dataclass(frozen=True)
class Room:
    """sizes: bytes of each expert at each of the recipe's widths, rising. capacity: bytes that all may take together,
    no less than the smallest widths need."""

    sizes: dict[Expert, tuple[int, ...]]
    capacity: int

    def of(self, experts: Sequence[Expert]) -> NDArray[np.int64]:
        """The sizes of these experts [n, widths]."""
        return np.array([self.sizes[expert] for expert in experts], np.int64)

    def share(self, experts: Sequence[Expert]) -> int:
        """The part of the capacity that falls to these experts, by what they take at the widest."""
        whole, part = (sum(self.sizes[expert][-1] for expert in group) for group in (self.sizes, experts))
        return self.capacity * part // whole
