"""Runs the worker that loads one model: a job in, its result out, in a process that ends with this one."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mopeq_hub.errors import MopeqError
from mopeq_hub.processes import KILLED, run_module
from mopeq_hub.progress import Progress


@dataclass(frozen=True)
class Job:
    """What the worker is to do with the model in `folder`.

    role: `original` writes the answers' logits to the file `logits`, `published` compares with them, `load` only loads
    and answers one question, `prepare` lets the loader make its modules and compares them with the files' headers.
    questions: None for the bundled set. dtype: by its name in torch, of the original, and of the published form where
    it is float32; None leaves it to the loader. limit: of the questions' tokens, 0 for none. trusted: whether code that
    comes with the model may be run. timed: whether it is measured how fast the published form answers.
    """

    role: Literal["original", "published", "load", "prepare"]
    folder: Path
    auto_class: str
    questions: Path | None = None
    logits: Path | None = None
    dtype: str | None = None
    limit: int = 0
    trusted: bool = False
    timed: bool = False


def run(job: Job, steps: int, progress: Progress) -> dict[str, Any]:
    """Run the worker to its end and read its result; `steps` is the number of rows it will tell of.

    Raises MopeqError with the worker's last words where it fails.
    """

    def failed(status: int, words: str) -> MopeqError:
        which = "the original" if job.role == "original" else "the published form"
        if status == KILLED:
            return MopeqError(
                f"the process that measured {which} was ended, most likely for want of memory",
                "use a machine with more",
            )
        return MopeqError(
            f"{which} could not be loaded and measured: {words}", "nothing was published; report the model's name"
        )

    with progress.stage(f"measure {job.role}", steps, "steps") as advance:
        return run_module("mopeq_hub.fidelity.worker", asdict(job), advance, failed)
