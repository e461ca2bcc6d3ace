"""Jobs are processes of their own, begun as copies of one that has imported what they need."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mopeq_hub import starter
from mopeq_hub.errors import MopeqError
from mopeq_hub.processes import KILLED, run_module

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="copies are made on Linux alone")

JOB = """
import json, os, signal, sys, time
from pathlib import Path
import mopeq_hub

def main(path):
    job = json.loads(path.read_text())
    if job["what"] == "fail":
        raise ValueError("there is no such thing")
    if job["what"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job["what"] == "wait":
        print(os.getpid(), flush=True)
        time.sleep(60)
    print(7, flush=True)
    print("this is no number", flush=True)
    found = {"pid": os.getpid(), "parent": os.getppid(), "folder": os.getcwd(), "new": not hasattr(mopeq_hub, "mark")}
    found["offline"] = os.environ.get("HF_HUB_OFFLINE")
    found |= {"token": os.environ.get("HF_TOKEN"), "said": os.environ.get("SAID"), "imported": sorted(sys.modules)}
    mopeq_hub.mark = True
    Path(job["result"]).write_text(json.dumps(found))
"""

IMPORTED = starter.IMPORTED


def failed(status: int, words: str) -> MopeqError:
    return MopeqError(f"{status}: {words}")


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where the job's module is, in a variable that is read early: the process that is copied is one of these tests'
    own, and imports little."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "a_job.py").write_text(JOB)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(starter, "IMPORTED", ("json",))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), *filter(None, sys.path)]))
        yield


def run(what: str = "", advance: Callable[[int], None] = lambda amount: None) -> dict[str, Any]:
    return run_module("a_job", {"what": what}, advance, failed)


def test_a_job_that_may_ask_the_hub_is_started_anew_and_knows_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_these_tests")
    found = run_module("a_job", {"what": ""}, lambda amount: None, failed, online=True)
    assert found["parent"] == os.getpid()
    assert (found["offline"], found["token"]) == (None, "hf_of_these_tests")
    apart = run()
    assert (apart["offline"], apart["token"]) == ("1", None)


def test_each_job_has_a_process_of_its_own_in_which_nothing_happened_before() -> None:
    steps: list[int] = []
    first, second = run(advance=steps.append), run(advance=steps.append)
    assert first["pid"] != second["pid"]
    assert first["parent"] == second["parent"] != os.getpid(), "they are copies of one"
    assert first["new"]
    assert second["new"]
    assert steps == [7, 7]


def test_what_every_model_needs_is_there_and_nothing_that_changes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "IMPORTED", IMPORTED)
    monkeypatch.setenv("HF_HUB_VERBOSITY", "error")  # read early, so this is another process than before
    imported = set(run()["imported"])
    assert {"torch", "transformers.modeling_utils"} <= imported
    assert "auto_round" not in imported, "importing it changes transformers"


def test_a_job_sees_its_own_environment_and_folder_and_no_token(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = run()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAID", "yes")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    found = run()
    assert found["parent"] == before["parent"]
    assert (found["folder"], found["said"], found["token"]) == (str(tmp_path), "yes", None)


def test_what_libraries_read_once_is_never_that_of_an_earlier_job(monkeypatch: pytest.MonkeyPatch) -> None:
    before = run()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert run()["parent"] != before["parent"]
    assert not psutil.pid_exists(before["parent"])


def test_how_a_job_failed_is_told_and_the_next_one_runs() -> None:
    parent = run()["parent"]
    with pytest.raises(MopeqError, match=r"^1: ValueError: there is no such thing$"):
        run("fail")
    with pytest.raises(MopeqError, match=rf"^{KILLED}: "):
        run("die")
    assert run()["parent"] == parent


def test_a_job_that_is_given_up_has_ended_and_so_has_what_it_is_a_copy_of() -> None:
    parent, begun = run()["parent"], []

    def give_up(pid: int) -> None:
        begun.append(pid)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("wait", give_up)
    left = [psutil.Process(pid) for pid in (parent, begun[0]) if psutil.pid_exists(pid)]
    _, alive = psutil.wait_procs(left, timeout=10)
    assert not alive


def test_the_process_itself_may_be_ended_like_any_other() -> None:
    parent = run()["parent"]

    def end(pid: int) -> None:
        os.kill(parent, signal.SIGKILL)

    with pytest.raises(MopeqError, match=rf"^{KILLED}: "):
        run("wait", end)
    assert run()["parent"] != parent


def test_nothing_is_left_of_whoever_is_killed(tmp_path: Path) -> None:
    script = "from mopeq_hub.processes import run_module; import sys; from pathlib import Path\n"
    script += "from mopeq_hub import starter; starter.IMPORTED = ()\n"
    script += "run_module('a_job', {'what': 'wait'}, lambda pid: Path(sys.argv[1]).write_text(str(pid)), Exception)"
    noted = tmp_path / "pid"
    with subprocess.Popen([sys.executable, "-c", script, str(noted)]) as asking:
        while not (noted.is_file() and noted.read_text()):
            assert asking.poll() is None
            time.sleep(0.02)
        left = [psutil.Process(int(noted.read_text())), *psutil.Process(asking.pid).children()]
        asking.kill()
    assert len(left) == 2
    _, alive = psutil.wait_procs(left, timeout=20)
    assert not alive
