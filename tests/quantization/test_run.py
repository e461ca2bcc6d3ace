"""A run that is stopped, at whatever moment, goes on when it is started again and ends with the same bytes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mopeq_hub import MopeqError, Recipe, pipeline
from mopeq_hub.hub.contents import contents
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.quantization import run
from mopeq_hub.sensitivity import run as measuring
from tests.conftest import many_shards

SHARDS = 12
KILLS = 25

PROGRAM = """
import os, random, shutil, signal, sys, time
from contextlib import contextmanager
from pathlib import Path
from mopeq_hub import Recipe, pipeline
from mopeq_hub.hub.contents import contents
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
# What every run would import by itself.
import sklearn.cluster, torch

model, folder, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
opened = open_model(model)
reading, writing = os.pipe()

class Slow(Quiet):
    def say(self, text):
        os.write(writing, b"+")
    @contextmanager
    def stage(self, name, total, unit="bytes"):
        os.write(writing, b".")
        yield lambda amount: time.sleep(0.0003)

def start():
    child = os.fork()
    if child == 0:
        try:
            pipeline.quantize(opened, folder, Recipe(bits=(3,)), progress=Slow())
            status = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            status = 1
        os.write(writing, b"!")
        os._exit(status)
    return child

def forget():
    shutil.rmtree(folder)
    shutil.rmtree(Path(os.environ["MOPEQ_HOME"]) / "profiles", ignore_errors=True)

child = start()
os.read(reading, 9)
began = time.monotonic()
assert os.waitpid(child, 0)[1] == 0
whole, expected = time.monotonic() - began, contents(folder)
forget()
random.seed(1)
killed = finished = resumed = 0
while killed < kills:
    child = start()
    heard = os.read(reading, 9)
    resumed += b"+" in heard
    time.sleep(random.uniform(0, whole))
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if status == 0:
        finished += 1
        assert contents(folder) == expected
        forget()
    else:
        assert status == signal.SIGKILL, status
        killed += 1
child = start()
assert os.waitpid(child, 0)[1] == 0
assert contents(folder) == expected
print(finished, resumed)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_shards(tmp_path_factory.mktemp("many") / "many-shards", SHARDS)


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".mopeq")]


def test_killed_at_random_moments_it_ends_with_the_same_bytes(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "repo"
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model), str(target), str(KILLS)],
        env={**os.environ, "MOPEQ_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert int(ran.stdout.split()[1]) > 0, "some runs went on from what a killed one had finished"
    assert left_in(target.parent) == []


class Stopped(Exception):
    pass


def stopped_after(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run fail when it begins with the unit of this number."""
    real, seen = run.quantize_unit, []

    def once(checkpoint: Any, unit: Any, *others: Any) -> None:
        seen.append(unit)
        if len(seen) > count:
            raise Stopped
        real(checkpoint, unit, *others)

    monkeypatch.setattr(run, "quantize_unit", once)


def stopped(model: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantize five shards and fail."""
    with monkeypatch.context() as patch:
        stopped_after(5, patch)
        with pytest.raises(Stopped):
            pipeline.quantize(str(model), folder, Recipe())


def quantized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards that are quantized from now on."""
    real: Any = run.quantize_unit
    shards: list[str] = []

    def counted(checkpoint: Any, unit: Any, *others: Any) -> None:
        shards.append(unit.shard)
        real(checkpoint, unit, *others)

    monkeypatch.setattr(run, "quantize_unit", counted)
    return shards


def test_what_was_finished_is_not_done_again(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pipeline.quantize(str(model), tmp_path / "whole", Recipe())
    stopped(model, tmp_path / "stopped", monkeypatch)
    assert not (tmp_path / "stopped").exists(), "nothing is half there"
    again = quantized(monkeypatch)
    resumed = pipeline.quantize(str(model), tmp_path / "stopped", Recipe())
    assert len(again) == SHARDS - 5
    assert contents(resumed.folder) == contents(whole.folder)
    assert left_in(tmp_path) == []


def test_a_finished_file_that_was_damaged_since_is_made_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(model, tmp_path / "stopped", monkeypatch)
    (kept,) = tmp_path.glob(".mopeq-kept-*")
    first, second = sorted((kept / "repo").glob("*.safetensors"))[:2]
    first.write_bytes(first.read_bytes()[:-1] + b"?")
    second.unlink()
    again = quantized(monkeypatch)
    resumed = pipeline.quantize(str(model), tmp_path / "stopped", Recipe())
    assert len(again) == SHARDS - 5 + 2
    assert contents(resumed.folder) == contents(pipeline.quantize(str(model), tmp_path / "whole", Recipe()).folder)


def test_another_recipe_does_not_go_on_with_it(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(model, tmp_path / "stopped", monkeypatch)
    again = quantized(monkeypatch)
    pipeline.quantize(str(model), tmp_path / "stopped", Recipe(bits=(3,)))
    assert len(again) == SHARDS


def test_a_run_that_finished_nothing_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped_after(0, monkeypatch)
    with pytest.raises(Stopped):
        pipeline.quantize(str(model), tmp_path / "stopped", Recipe())
    assert left_in(tmp_path) == []


def test_two_runs_do_not_do_the_same_work_at_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(*anything: Any) -> None:
        with pytest.raises(MopeqError, match="another run"):
            pipeline.quantize(str(model), tmp_path / "repo", Recipe())
        raise Stopped

    monkeypatch.setattr(run, "quantize_unit", meanwhile)
    with pytest.raises(Stopped):
        pipeline.quantize(str(model), tmp_path / "repo", Recipe())


def test_the_profile_goes_on_as_well(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, notes = open_model(str(model)), tmp_path / "notes"
    whole = measuring.measure(opened, Recipe(), tmp_path / "others", Quiet())
    real, seen = measuring.measure_matrices, []

    def counted(*arguments: Any) -> Any:
        seen.append(1)
        if len(seen) == 5:
            raise Stopped
        return real(*arguments)

    monkeypatch.setattr(measuring, "measure_matrices", counted)
    with pytest.raises(Stopped):
        measuring.measure(opened, Recipe(), notes, Quiet())
    notes.write_text(notes.read_text() + '{"half a li')
    assert measuring.measure(opened, Recipe(), notes, Quiet()) == whole
    assert len(seen) == SHARDS + 1
    assert not notes.exists()
