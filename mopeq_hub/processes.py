"""Work in a process of its own: a job goes in as JSON, progress comes back as numbers, the result as JSON.

Each model is loaded in such a process, because auto-round changes transformers for the whole of one, and because memory
that a model took is given back for certain only when its process ends.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from mopeq_hub.errors import MopeqError
from mopeq_hub.progress import Advance
from mopeq_hub.remote_code import keep_apart
from mopeq_hub.starter import start
from mopeq_hub.startup import collect_rarely, environment

KILLED = -9
"""The exit status of a process that the system ended, most likely for want of memory."""


def run_module(
    module: str,
    job: dict[str, Any],
    advance: Advance,
    failed: Callable[[int, str], MopeqError],
    *,
    online: bool = False,
) -> dict[str, Any]:
    """Run `main(Path(JOB.json))` of a module to its end and read its result.

    job: JSON types and paths, which are made absolute; `result` (where to write) and `threads` are added to it, and
    `read_job` reads it there. Where it is `trusted`, code that comes with a model may be run there. Every
    line that the process prints as a number is told to `advance`. online: whether it may ask the Hub for anything; what
    loads a model has it all on the disk. Raises what `failed` makes of the exit status and the last words on standard
    error; however this ends, the process has ended too.
    """
    with tempfile.TemporaryDirectory() as scratch:
        job_path, result, log = (Path(scratch) / name for name in ("job.json", "result.json", "log"))
        job_path.write_text(json.dumps(_described(job, result)), "utf-8")
        with open(log, "w+", encoding="utf-8") as words:
            status = _follow(module, job_path, words, advance, online)
            if status != 0 or not result.is_file():
                words.seek(0)
                raise failed(status, _last_line(words.read(), status))
        return dict(json.loads(result.read_text("utf-8")))


def _described(job: dict[str, Any], result: Path) -> dict[str, Any]:
    """The job as JSON, its paths absolute."""
    described = {key: str(value.resolve()) if isinstance(value, Path) else value for key, value in job.items()}
    # OpenMP threads that outnumber the cores spin against each other.
    threads = int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    return {**described, "result": str(result), "threads": threads}


def _follow(module: str, job: Path, words: Any, advance: Advance, online: bool) -> int:
    """Start the process, tell its steps, and give its exit status."""
    given = {**environment(), "TOKENIZERS_PARALLELISM": "false"}
    if not online:
        given["HF_HUB_OFFLINE"] = "1"
        # Nothing is asked of the Hub there, so nobody has to be known.
        given.pop("HF_TOKEN", None)
    with start(module, job, words, given, anew=online) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.strip().isdigit():
                    advance(int(line))
            return process.wait()
        except BaseException:
            process.kill()
            raise


def read_job(path: Path) -> dict[str, Any]:
    """In that process: the job as whoever asks describes it; torch is told its number of threads."""
    import torch

    job = dict(json.loads(path.read_text("utf-8")))
    torch.set_num_threads(job["threads"])
    if job.get("trusted"):
        keep_apart(path.parent / "modules")
    return job


def main() -> None:
    """A process started anew: `python -m mopeq_hub.processes MODULE JOB.json`."""
    module, job = sys.argv[1:]
    collect_rarely()
    import_module(module).main(Path(job))


def _last_line(words: str, status: int) -> str:
    return next((line for line in reversed(words.splitlines()) if line.strip()), f"exit status {status}")


if __name__ == "__main__":
    main()
