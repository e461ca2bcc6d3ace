"""Where units of work are done: on this machine, on a Ray cluster, as a job on the Hub.

A unit is a shard. Engines know nothing of what is done with one: whoever asks hands over the work, and is told of each
unit that is finished.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from mopeq_hub.progress import Advance

Item = TypeVar("Item")
Done = TypeVar("Done")
_Taken = TypeVar("_Taken", contravariant=True)
_Given = TypeVar("_Given", covariant=True)


class Stages(Protocol[_Taken, _Given]):
    """What is done with each item, in this order; `get` and `finish` may run in threads of their own."""

    def get(self, item: _Taken) -> None:
        """Have what the work needs on this machine."""

    def work(self, item: _Taken) -> Any:
        """The work itself, with all cores; what comes of it is for `finish`."""

    def finish(self, made: Any) -> _Given:
        """Hash, send, let go."""

    def stop(self) -> None:
        """Something failed: let what is being got come to nothing soon."""


class Work(Protocol[_Taken, _Given]):
    """What is to be done with items. It can be pickled, in parts."""

    def open(self, advance: Advance, place: Path | None = None) -> Stages[_Taken, _Given]:
        """The stages, in the process that works.

        place: on a machine that may not be the asking one, a folder there that is gone afterwards.
        """

    def part(self, item: _Taken) -> "Work[_Taken, _Given]":
        """As much of the work as this item needs: what travels to another machine."""


class Engine(Protocol):
    """Takes items through their stages."""

    @property
    def elsewhere(self) -> bool:
        """Whether the work is done by other processes than the one that asks."""

    def run(
        self, work: Work[Item, Done], items: Sequence[Item], done: Callable[[Item, Done], None], advance: Advance
    ) -> None:
        """Do the work on every item; `done` is told each result, one at a time, `advance` the bytes.

        What a stage raises is raised here, once nothing runs any more.
        """
