"""The engine for one machine: while one unit is worked on, the next is fetched and the one before is finished."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from mopeq_hub.engines import Done, Item, Stages, Work
from mopeq_hub.progress import Advance


class Local:
    """Items in order; at most one is got ahead and one is being finished."""

    elsewhere = False

    def run(
        self, work: Work[Item, Done], items: Sequence[Item], done: Callable[[Item, Done], None], advance: Advance
    ) -> None:
        """As `Engine` says; `done` is called in a thread of its own."""
        stages = work.open(advance)
        with ThreadPoolExecutor(1, "get") as getter, ThreadPoolExecutor(1, "finish") as finisher:
            coming: Future[None] | None = None
            going: Future[None] | None = None
            try:
                for position, item in enumerate(items):
                    (coming or getter.submit(stages.get, item)).result()
                    following = items[position + 1 : position + 2]
                    coming = getter.submit(stages.get, following[0]) if following else None
                    made = stages.work(item)
                    if going:
                        going.result()
                    going = finisher.submit(_finish, stages, item, made, done)
                if going:
                    going.result()
            except BaseException:
                stages.stop()
                raise


LOCAL = Local()


def _finish(stages: Stages[Item, Done], item: Item, made: Any, done: Callable[[Item, Done], None]) -> None:
    done(item, stages.finish(made))
