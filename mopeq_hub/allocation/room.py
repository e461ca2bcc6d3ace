"""Room: what each projection takes at each width, and what all may take together."""

from collections.abc import Mapping
from dataclasses import dataclass

from mopeq_hub.experts import Expert


@dataclass(frozen=True)
class Room:
    """sizes: bytes of each projection of each expert at each of the recipe's widths, rising. capacity: bytes that all
    may take together, no less than the smallest widths need."""

    sizes: Mapping[tuple[Expert, str], tuple[int, ...]]
    capacity: int
