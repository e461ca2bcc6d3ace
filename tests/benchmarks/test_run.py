"""Both models answer the bundled model's questions through lmms-eval itself, each in a process of its own, and whatever
cannot be run has a reason in place of a number."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mopeq_hub import MopeqError
from mopeq_hub.benchmarks import Benchmarks, benchmarks
from mopeq_hub.benchmarks import run as running
from mopeq_hub.benchmarks.run import run
from mopeq_hub.fidelity.measure import Way
from mopeq_hub.manifest import read_fidelity, read_manifest
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.records import append
from tests.conftest import ASSETS, made_once

WHOLE = Way(blocks=False, dtype="float32")
TASKS = ASSETS / "shapes-tasks"
Job = dict[str, Any]


def answered(folder: Path, asked: Benchmarks | None, way: Way = WHOLE) -> dict[str, Any]:
    """What fidelity.json of the publication in `folder` is to say of the benchmarks."""
    assert asked is not None
    return run(open_model(str(ASSETS / "shapes-moe-vl")), folder, read_manifest(folder), asked, way, Quiet())


@pytest.fixture(scope="module")
def found(published: Path, shared: Path) -> dict[str, Any]:
    """The 48 questions that the publication was measured on, as one task, beside two that cannot be run."""

    def make(folder: Path) -> None:
        folder.mkdir()
        asked = benchmarks(["broken", "shapes", "nowhere"], limit=48, folder=TASKS)
        (folder / "found.json").write_text(json.dumps(answered(published, asked)), "utf-8")

    return dict(json.loads((made_once(shared / "benchmarks", make) / "found.json").read_text("utf-8")))


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Job], dict[str, Any]]], list[Job]]:
    """Puts a function in the place of the process, and gives the list of the jobs that it is asked to do."""

    def put(work: Callable[[Job], dict[str, Any]]) -> list[Job]:
        jobs: list[Job] = []

        def run_module(module: str, job: Job, *others: Any, **options: Any) -> dict[str, Any]:
            jobs.append(job)
            return work(job)

        monkeypatch.setattr(running, "run_module", run_module)
        return jobs

    return put


def result(found: dict[str, Any], name: str) -> dict[str, Any]:
    [one] = [each for each in found["results"] if each["name"] == name]
    return dict(one)


def reasons(found: dict[str, Any]) -> dict[str, str]:
    return {each["name"]: each["not_run"] for each in found["results"]}


def test_each_models_accuracy_is_what_our_own_marking_finds(found: dict[str, Any], published: Path) -> None:
    ours = (read_fidelity(published) or {})["accuracy"]
    assert 0.5 < ours["published"] < 1
    assert result(found, "shapes") == {
        "name": "shapes",
        "task": "shapes",
        "samples": ours["questions"],
        "of": 400,
        "metrics": [{"name": "exact_match", "original": ours["original"], "published": ours["published"]}],
        "not_run": None,
    }
    assert (found["suite"], found["limit"], found["dtype"]) == ("lmms-eval", 48, "float32")


def test_a_task_that_fails_is_not_run_and_the_others_are(found: dict[str, Any]) -> None:
    assert reasons(found) == {"broken": "it failed (ValueError)", "shapes": None, "nowhere": "there is no such task"}
    assert result(found, "broken")["metrics"] == result(found, "nowhere")["metrics"] == []


def test_without_lmms_eval_nothing_is_run(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "version", lambda: None)
    told = answered(published, benchmarks(["MME", "BLINK"]))
    assert reasons(told) == dict.fromkeys(["MME", "BLINK"], "lmms-eval is not installed")
    assert told["version"] is None


def test_a_model_that_memory_does_not_hold_is_not_asked(published: Path) -> None:
    told = answered(published, benchmarks(["MME"]), Way(blocks=True, dtype="bfloat16"))
    assert reasons(told) == {"MME": "memory does not hold the original"}


def test_what_a_process_gave_before_it_ended_counts(
    published: Path, process: Callable[[Callable[[Job], dict[str, Any]]], list[Job]]
) -> None:
    def ends(job: Job) -> dict[str, Any]:
        append(job["notes"], {"task": "mme", "metrics": {"score": 0.75}, "samples": 4, "of": 4})
        raise MopeqError("its process was ended, most likely for want of memory")

    jobs = process(ends)
    told = answered(published, benchmarks(["MME", "AI2D"], limit=4))
    assert reasons(told) == {"MME": None, "AI2D": "its process was ended, most likely for want of memory"}
    assert result(told, "MME")["metrics"] == [{"name": "score", "original": 0.75, "published": 0.75}]
    assert [(job["role"], job["tasks"]) for job in jobs] == [("original", ["mme", "ai2d"]), ("published", ["mme"])]


def test_what_is_known_of_the_same_weights_is_not_asked_again(
    published: Path, process: Callable[[Callable[[Job], dict[str, Any]]], list[Job]]
) -> None:
    def gives(job: Job) -> dict[str, Any]:
        for task in job["tasks"]:
            append(job["notes"], {"task": task, "metrics": {"score": 0.5}, "samples": 5, "of": 5})
        return {"failed": {}}

    jobs = process(gives)
    first = answered(published, benchmarks(["MME"], limit=5))
    assert answered(published, benchmarks(["MME"], limit=5)) == first
    assert len(jobs) == 2
    answered(published, benchmarks(["MME"], limit=6))
    assert [job["limit"] for job in jobs] == [5, 5, 6, 6]


def test_a_number_that_one_model_alone_gave_is_none(
    published: Path, process: Callable[[Callable[[Job], dict[str, Any]]], list[Job]]
) -> None:
    def gives(job: Job) -> dict[str, Any]:
        if job["role"] == "published":
            return {"failed": {"mme": ["it failed (KeyError)", "it failed: KeyError: 'answer'"]}}
        append(job["notes"], {"task": "mme", "metrics": {"score": 0.5}, "samples": 7, "of": 7})
        return {"failed": {}}

    process(gives)
    told = result(answered(published, benchmarks(["MME"], limit=7)), "MME")
    assert (told["metrics"], told["samples"]) == ([], None)
    assert told["not_run"] == "with the publication, it failed (KeyError)"
