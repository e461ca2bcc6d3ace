"""Benchmarks of one model in a process of its own, started by `mopeq_hub.processes`.

What a task gave is noted at once, a line of JSON each, so that a process that ends too early leaves what it had. The
result says of the others why they gave nothing. Progress goes to standard output, one number of finished tasks a line;
whatever lmms-eval and its tasks print goes to standard error.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mopeq_hub.families.speaking import speaking
from mopeq_hub.fidelity.worker import load
from mopeq_hub.processes import read_job
from mopeq_hub.questions.inputs import Encoder
from mopeq_hub.records import append
from mopeq_hub.runtime.loading import accelerate, change_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from mopeq_hub.benchmarks.suite import Suite


def main(job_path: Path) -> None:
    told, sys.stdout = sys.stdout, sys.stderr
    job = read_job(job_path)
    from mopeq_hub.benchmarks.suite import FailedTaskError

    folder, failed = Path(job["folder"]), {}
    with tempfile.TemporaryDirectory() as scratch:
        suite = suite_for(job, Path(scratch))
        model, encoder = _loaded(folder, job), Encoder(folder, job["trusted"])
        for task in job["tasks"]:
            try:
                append(Path(job["notes"]), {"task": task, **suite.run(task, model, encoder)})
            except FailedTaskError as error:
                failed[task] = [error.reason, str(error)]
            print(1, file=told, flush=True)
    Path(job["result"]).write_text(json.dumps({"failed": failed}), "utf-8")


def _loaded(folder: Path, job: dict[str, Any]) -> "PreTrainedModel":
    """The original, or the published form computing by the runtime where it is on the CPU."""
    model = load(folder, job)[0]
    if job["role"] == "published":
        if not job["device_map"]:
            speaking(accelerate(model))
        if job["dtype"] == "float32":
            change_dtype(model, torch.float32)
    return model  # type: ignore[no-any-return]


def suite_for(job: dict[str, Any], scratch: Path) -> "Suite":
    """The tasks that a job names. Only where standard output is what lmms-eval may print to: it is settled with its
    import."""
    from mopeq_hub.benchmarks.suite import Suite

    return Suite(job["tasks"], Path(job["own"]) if job["own"] else None, job["limit"], scratch)
