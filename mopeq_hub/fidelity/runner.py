"""Runs the worker that loads one model: a job in, its result out, in a process that ends with this one."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mopeq_hub.errors import MopeqError
from mopeq_hub.progress import Advance, Progress


@dataclass(frozen=True)
class Job:
    """What the worker is to do with the model in `folder`.

    role: `original` writes the answers' logits to the file `logits`, `published` compares with them, `load` only loads,
    `prepare` lets the loader make its modules and compares them with the files' headers.
    questions: None for the bundled set. dtype: by its name in torch, of the original, and of the published form where
    it is float32; None leaves it to the loader. limit: of the questions' tokens, 0 for none.
    """

    role: Literal["original", "published", "load", "prepare"]
    folder: Path
    auto_class: str
    questions: Path | None = None
    logits: Path | None = None
    dtype: str | None = None
    limit: int = 0


def run(job: Job, steps: int, progress: Progress) -> dict[str, Any]:
    """Run the worker to its end and read its result; `steps` is the number of rows it will tell of.

    Raises MopeqError with the worker's last words where it fails.
    """
    with tempfile.TemporaryDirectory() as scratch, progress.stage(f"measure {job.role}", steps, "steps") as advance:
        job_path, result, log = (Path(scratch) / name for name in ("job.json", "result.json", "log"))
        job_path.write_text(json.dumps(_described(job, result)), "utf-8")
        with open(log, "w+", encoding="utf-8") as words:
            status = _follow(job_path, words, advance)
            if status != 0 or not result.is_file():
                words.seek(0)
                raise _failed(job, status, words.read())
        return dict(json.loads(result.read_text("utf-8")))


def _described(job: Job, result: Path) -> dict[str, Any]:
    """The job as JSON, its paths absolute."""
    described = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in asdict(job).items()}
    # OpenMP threads that outnumber the cores spin against each other.
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    return {**described, "result": str(result), "threads": threads}


def _follow(job_path: Path, words: Any, advance: Advance) -> int:
    """Start the worker, tell its steps, and give its exit status. However this ends, the worker has ended too."""
    command = [sys.executable, "-m", "mopeq_hub.fidelity.worker", str(job_path)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.strip().isdigit():
                    advance(int(line))
            return process.wait()
        except BaseException:
            process.kill()
            raise


def _failed(job: Job, status: int, words: str) -> MopeqError:
    which = "the original" if job.role == "original" else "the published form"
    if status == -9:
        return MopeqError(
            f"the process that measured {which} was ended, most likely for want of memory", "use a machine with more"
        )
    last = next((line for line in reversed(words.splitlines()) if line.strip()), f"exit status {status}")
    return MopeqError(
        f"{which} could not be loaded and measured: {last}", "nothing was published; report the model's name"
    )
