"""Benchmarks of many bit maps, tried on the original in memory one after the other: a process of its own, started by
`mopeq_hub.processes`.

What a map's tasks gave is noted at once, a line of JSON each. A task that gave nothing is not waited for once more with
the next map. Progress goes to standard output, one number of finished maps a line.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from mopeq_hub.benchmarks.worker import suite_for
from mopeq_hub.calibration import load
from mopeq_hub.fidelity.trial_worker import Changing
from mopeq_hub.model import open_model
from mopeq_hub.processes import read_job
from mopeq_hub.questions.inputs import Encoder
from mopeq_hub.records import append


def main(job_path: Path) -> None:
    told, sys.stdout = sys.stdout, sys.stderr
    job = read_job(job_path)
    from mopeq_hub.benchmarks.suite import FailedTaskError

    model = open_model(job["folder"], named=False, trust_remote_code=job["trusted"])
    failed: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        suite = suite_for(job, Path(scratch))
        live = load(job)
        if torch.cuda.is_available():
            live.to("cuda")
        changing, encoder = Changing(model, live, job), Encoder(Path(job["folder"]), job["trusted"])
        for key, widths in json.loads(Path(job["maps"]).read_text("utf-8")).items():
            changing.take(widths)
            found = {}
            for task in job["tasks"]:
                if task not in failed:
                    try:
                        found[task] = suite.run(task, changing.live, encoder)
                    except FailedTaskError as error:
                        failed[task] = [error.reason, str(error)]
            append(Path(job["notes"]), {"key": key, "benchmarks": found})
            print(1, file=told, flush=True)
    Path(job["result"]).write_text(json.dumps({"failed": failed}), "utf-8")
