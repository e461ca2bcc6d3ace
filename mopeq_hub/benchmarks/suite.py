"""lmms-eval run on a model in memory, task by task; a task that fails leaves the others alone."""

import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

from mopeq_hub.benchmarks.adapter import Asked
from mopeq_hub.questions.inputs import Encoder


class FailedTaskError(Exception):
    """A task gave no number. reason: in a few words that hold no name of this machine's; the message has the rest."""

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


class Suite:
    """lmms-eval's tasks, and those of `folder`.

    limit: questions of each, 0 for all. scratch: where tasks leave what they write besides, such as answers to be
    submitted somewhere.
    """

    def __init__(self, tasks: Sequence[str], folder: Path | None, limit: int, scratch: Path) -> None:
        self._limit, self._scratch = limit, scratch
        own = str(folder) if folder else None
        # Reading lmms-eval's own 2,000 task files takes seconds, which a folder that has all of them need not.
        manager = TaskManager("ERROR", own, include_defaults=False) if own else None
        if manager is None or not set(tasks) <= set(manager.all_tasks):
            manager = TaskManager("ERROR", own)
        self._manager = manager

    def run(self, task: str, model: Any, encoder: Encoder) -> dict[str, Any]:
        """What a task says of a model: `metrics` by their names, `samples`, the number of questions that were asked,
        and `of`, that of all that it has. Raises FailedTaskError where it gives no number."""
        if task not in self._manager.all_tasks:
            raise FailedTaskError("there is no such task", f"lmms-eval has no task {task!r}")
        asked = Asked(model, encoder)
        try:
            found = simple_evaluate(
                asked,
                tasks=[task],
                task_manager=self._manager,
                limit=self._limit or None,
                log_samples=False,
                bootstrap_iters=0,
                verbosity="ERROR",
                # What lmms-eval's own command would pass on; some tasks ask it where to write.
                cli_args=Namespace(output_path=str(self._scratch), process_with_media=False),
            )
        except (Exception, SystemExit) as error:
            cause = _cause(error)
            what = "it failed" if asked.begun else "its questions could not be loaded"
            raise FailedTaskError(
                f"{what} ({type(cause).__name__})", f"{what}: {type(cause).__name__}: {cause}"
            ) from None
        metrics = dict(_metrics(found["results"].get(task, {})))
        if not metrics:
            raise FailedTaskError("it gave no number", f"{task} gave no number")
        asked_of = [found["n-samples"][each] for each in found["group_subtasks"].get(task) or [task]]
        return {
            "metrics": metrics,
            "samples": sum(each["effective"] for each in asked_of),
            "of": sum(each["original"] for each in asked_of),
        }


def _cause(error: BaseException) -> BaseException:
    """What lay behind an error: tenacity, by which lmms-eval tries again, wraps the last one."""
    last = getattr(error, "last_attempt", None)
    return (last.exception() if last is not None else None) or error


def _metrics(results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """The finite numbers among a task's results, by the metric's own name; the filter that made them is named too where
    there are several of one name. Standard errors and texts are left out."""
    named = [(*key.partition(",")[::2], value) for key, value in results.items()]
    numbers = [
        (metric, by, float(value))
        for metric, by, value in named
        if "_stderr" not in metric and isinstance(value, int | float) and not isinstance(value, bool)
    ]
    metrics = [metric for metric, _, _ in numbers]
    for metric, by, value in numbers:
        if math.isfinite(value):
            yield (metric if metrics.count(metric) == 1 else f"{metric} ({by})"), value
