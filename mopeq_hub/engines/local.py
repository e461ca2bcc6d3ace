"""The engine for one machine: while one unit is worked on, the next is fetched and the one before is finished."""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

Item = TypeVar("Item", contravariant=True)


class Stages(Protocol[Item]):
    """What is done with each item, in this order. `get` and `finish` run in threads of their own."""

    def get(self, item: Item) -> None:
        """Have what the work needs on this machine."""

    def work(self, item: Item) -> None:
        """The work itself, with all cores."""

    def finish(self, item: Item) -> None:
        """Hash, send, remember, let go."""

    def stop(self) -> None:
        """Something failed: let what is being got come to nothing soon."""


def run(stages: Stages[Item], items: Iterable[Item]) -> None:
    """Take every item through the stages, in order; at most one is got ahead and one is being finished.

    What a stage raises is raised here, once no stage runs any more.
    """
    queue: Sequence[Item] = list(items)
    with ThreadPoolExecutor(1, "get") as getter, ThreadPoolExecutor(1, "finish") as finisher:
        coming: Future[None] | None = None
        going: Future[None] | None = None
        try:
            for position, item in enumerate(queue):
                (coming or getter.submit(stages.get, item)).result()
                following = queue[position + 1 : position + 2]
                coming = getter.submit(stages.get, following[0]) if following else None
                stages.work(item)
                if going:
                    going.result()
                going = finisher.submit(stages.finish, item)
            if going:
                going.result()
        except BaseException:
            stages.stop()
            raise
