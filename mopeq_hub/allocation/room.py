"""Room: what everything that competes takes at each width, and what all may take together."""

from collections.abc import Mapping
from dataclasses import dataclass

from mopeq_hub.experts import Expert

Member = tuple[Expert, str] | str
"""What has a size and a width: a projection of an expert, or by its name a linear layer outside the experts."""


@dataclass(frozen=True)
class Room:
    """sizes: bytes of each member at each of the widths that compete, rising. capacity: bytes that all may take
    together, no less than the smallest widths need."""

    sizes: Mapping[Member, tuple[int, ...]]
    capacity: int
