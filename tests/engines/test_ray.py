"""A Ray cluster gives the bytes that one machine gives, whatever happens to its workers."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from mopeq_hub import MopeqError, Recipe, cli, pipeline, publish
from mopeq_hub.bitmap import BitMap
from mopeq_hub.engines.ray import Ray
from mopeq_hub.hub.contents import contents
from mopeq_hub.model import Weights, open_model
from mopeq_hub.progress import Advance
from mopeq_hub.quantization import run
from mopeq_hub.quantization.stream import Unit, plan_units
from tests.conftest import many_shards
from tests.hub import HubServer, client_pointed_at

SHARDS = 4
RECIPE = Recipe(bits=(2, 4))
ROOT = Path(__file__).parent.parent.parent

CLUSTER = """
import logging, sys
import ray

started = ray.init("local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
print(started.address_info["gcs_address"], started.address_info["session_dir"], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Cluster:
    address: str
    logs: Path


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two worker processes' worth of Ray, in a process of its own, so that it is there before and after each run."""
    own = {
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as home:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        # Ray puts sockets there, whose paths must be short.
        patch.setenv("RAY_TMPDIR", home)
        with subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            env={**os.environ, **own},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            address, folder = process.stdout.readline().split()
            yield Cluster(address, Path(folder) / "logs")
            process.stdin.close()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    folder = tmp_path_factory.mktemp("hub")
    with HubServer(folder / "server") as server, client_pointed_at(server, folder / "home"):
        yield server


@pytest.fixture(scope="module")
def engine(cluster: Cluster, hub: HubServer) -> Iterator[Ray]:
    """Connected once for all tests, since new workers take seconds to begin."""
    with Ray(cluster.address) as connected:
        yield connected


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return many_shards(tmp_path_factory.mktemp("ray") / "many-shards", SHARDS)


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What this machine makes of it alone."""
    return contents(pipeline.quantize(str(model), tmp_path_factory.mktemp("local") / "repo", RECIPE).folder)


@pytest.fixture(autouse=True)
def nothing_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOPEQ_HOME", str(tmp_path / "mopeq-home"))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is Python's own, whatever command ran in this process before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Noted(run.Quantizing):
    """Quantizing that leaves a line with shard and process for each unit begun. deadly: the shard at which the worker
    dies the first time. slow: seconds that each unit takes, but that of the shard `quick`. together: processes that
    wait for each other."""

    notes: Path = Path()
    deadly: str = ""
    slow: float = 0
    quick: str = ""
    together: int = 1

    def open(self, advance: Advance, place: Path | None = None) -> Any:
        return NotedStages(self, advance, place)


class NotedStages(run._Stages):
    def work(self, unit: Unit) -> list[Path]:
        noted: Any = self._asked
        with open(noted.notes, "a") as file:
            file.write(f"{unit.shard} {os.getpid()}\n")
        if unit.shard != noted.quick:
            time.sleep(noted.slow)
        while len({process for _, process in begun(noted.notes)}) < noted.together:
            time.sleep(0.05)
        made = super().work(unit)
        first = noted.notes.read_text().count(unit.shard) == 1
        if unit.shard == noted.deadly and first:
            # What is there is damaged, as by a worker that dies while it writes.
            os.truncate(made[0], made[0].stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        return made


def noted(notes: Path, monkeypatch: pytest.MonkeyPatch, **how: Any) -> None:
    how["notes"] = notes
    monkeypatch.setattr(run, "Quantizing", lambda *fields: Noted(*fields, **how))


def begun(notes: Path) -> list[tuple[str, int]]:
    """Shard and process of each unit that was begun, by shard."""
    return sorted((shard, int(process)) for shard, process in map(str.split, notes.read_text().splitlines()))


def still_there(processes: set[int], timeout: float) -> list[psutil.Process]:
    """Those that do not end within so many seconds."""
    there = [process for process in psutil.process_iter() if process.pid in processes]
    _, alive = psutil.wait_procs(there, timeout=timeout)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def test_two_workers_give_the_same_bytes(
    engine: Ray, model: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted(tmp_path / "notes", monkeypatch, together=2)
    repo = pipeline.quantize(str(model), tmp_path / "repo", RECIPE, engine=engine)
    assert contents(repo.folder) == whole
    processes = [process for _, process in begun(tmp_path / "notes")]
    assert len(processes) == SHARDS
    assert os.getpid() not in processes
    assert len(set(processes)) == 2


def test_a_worker_that_is_killed_costs_one_shard(
    engine: Ray, model: Path, whole: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly = f"model-00002-of-{SHARDS:05d}.safetensors"
    noted(tmp_path / "notes", monkeypatch, deadly=deadly)
    repo = pipeline.quantize(str(model), tmp_path / "repo", RECIPE, engine=engine)
    assert contents(repo.folder) == whole
    shards = [shard for shard, _ in begun(tmp_path / "notes")]
    assert len(shards) == SHARDS + 1
    assert shards.count(deadly) == 2
    first, second = (process for shard, process in begun(tmp_path / "notes") if shard == deadly)
    assert first != second
    assert [path.name for path in tmp_path.glob(".mopeq-*")] == []


def test_ctrl_c_ends_the_workers_too(
    interruptible: None, engine: Ray, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = tmp_path / "notes"
    noted(notes, monkeypatch, slow=600)

    def interrupt() -> None:
        while not notes.exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        pipeline.quantize(str(model), tmp_path / "repo", RECIPE, engine=engine)
    assert not still_there({process for _, process in begun(notes)}, timeout=5)
    assert not (tmp_path / "repo").exists()


def test_when_a_run_has_failed_its_workers_have_ended(
    engine: Ray, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that goes on would write where the next run writes, so it is waited for, here where the word to end
    takes a second to reach it."""
    import ray

    notes, quick = tmp_path / "notes", f"model-00001-of-{SHARDS:05d}.safetensors"
    noted(notes, monkeypatch, slow=600, quick=quick, together=2)

    def full(journal: run.Journal, unit: Unit, files: Any) -> None:
        raise MopeqError("the disk is full", "free some")

    def later(reference: Any, *, force: bool, real: Any = ray.cancel) -> None:
        threading.Timer(1, real, (reference,), {"force": force}).start()

    monkeypatch.setattr(run.Journal, "add", full)
    monkeypatch.setattr(ray, "cancel", later)
    with pytest.raises(MopeqError, match="the disk is full"):
        pipeline.quantize(str(model), tmp_path / "repo", RECIPE, engine=engine)
    assert not still_there({process for shard, process in begun(notes) if shard != quick}, timeout=0.5)


class Failing:
    """Work of which every unit fails once it is begun."""

    def part(self, item: int) -> "Failing":
        return self

    def open(self, advance: Advance, place: Path | None = None) -> "Failing":
        return self

    def get(self, item: int) -> None:
        time.sleep(item / 1000)
        raise MopeqError("the disk is full", "free some")


def test_units_that_fail_together_are_one_error(engine: Ray) -> None:
    """Ray ends the process that cancels a task just when it ends, so once is not enough to see it go well."""
    work: Any = Failing()
    for late in range(15):
        with pytest.raises(MopeqError, match="the disk is full"):
            engine.run(work, [0, late, late, late], lambda item, made: None, lambda amount: None)


def test_what_went_wrong_is_one_line_and_what_was_finished_is_not_done_again(
    engine: Ray,
    cluster: Cluster,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["quantize", "--engine", "ray", "--ray-address", cluster.address, "--bits", "2,4", str(model)]
    command += ["--recipe", "mopeq"]
    real = run.Journal.add

    def stopping(journal: run.Journal, unit: Unit, files: Any) -> None:
        if len(journal._finished) == 2:
            raise MopeqError("the disk is full", "free some")
        real(journal, unit, files)

    noted(tmp_path / "notes", monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(run.Journal, "add", stopping)
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, str(tmp_path / "repo")])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: the disk is full; free some\n"
    (tmp_path / "notes").unlink()
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, str(tmp_path / "repo")])
    assert ended.value.code in (None, 0)
    assert "going on where it was stopped: 2 of 4" in capsys.readouterr().err
    assert len(begun(tmp_path / "notes")) == SHARDS - 2


def test_an_error_in_a_worker_is_the_same_one_line(
    engine: Ray, cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    source = many_shards(tmp_path / "source", 3)
    file = source / "model-00002-of-00003.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "experts" in name)
    tensors[name][0, 0] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    said = []
    for options in ([], ["--engine", "ray", "--ray-address", cluster.address]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["quantize", "--recipe", "mopeq", str(source), str(tmp_path / "repo"), *options])
        assert ended.value.code == 1
        said.append(capsys.readouterr().err)
    assert f"{name} holds NaN" in said[0]
    assert said[0] == said[1]
    assert not (tmp_path / "repo").exists()


def test_workers_send_their_files_and_one_commit_publishes_them(
    engine: Ray, cluster: Cluster, hub: HubServer, model: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("alice/shapes", model)
    token = hub.token("alice")
    monkeypatch.setenv("HF_TOKEN", token)
    publication = publish("alice/shapes", "alice/out", RECIPE, fidelity_tokens=200, space=False, engine=engine)
    sent = {name: entry.sha256 for name, entry in hub.entries("alice/out").items() if name.endswith(".safetensors")}
    assert len(sent) == SHARDS
    assert sent == {name: digest for name, digest in whole.items() if name.endswith(".safetensors")}
    assert publication.commit == hub.head("alice/out")
    assert len([commit for commit in hub.history("alice/out") if "mopeq" in commit.title]) == 1
    assert publication.fidelity is not None
    assert publication.fidelity["kl"]["mean"] > 0
    logs = b"".join(path.read_bytes() for path in cluster.logs.rglob("*") if path.is_file())
    assert logs, "the cluster keeps logs"
    assert token.encode() not in logs, "and no token in them"


def test_a_folder_that_the_workers_do_not_have_is_said(engine: Ray, model: Path, tmp_path: Path) -> None:
    class Elsewhere(Weights):
        def __reduce__(self) -> Any:
            rebuild, (_, block) = super().__reduce__()
            return rebuild, ("/nowhere/model", block)

    opened = open_model(str(model))
    units = plan_units(opened.checkpoint, opened.layout, BitMap.uniform(opened.layout, 2), RECIPE)
    elsewhere = Elsewhere(opened.source, opened.checkpoint)
    works = {
        "/nowhere/model": run.Quantizing(elsewhere, RECIPE, tmp_path, {}, None, None),
        str(tmp_path / "out"): run.Quantizing(opened.weights, RECIPE, tmp_path / "out", {}, None, None),
    }
    for missing, work in works.items():
        with pytest.raises(MopeqError, match=f"^{missing} is not on .*in common"):
            engine.run(work, units, lambda unit, files: None, lambda amount: None)


def test_a_cluster_that_is_not_there_is_one_line(model: Path, tmp_path: Path) -> None:
    with Ray("127.0.0.1:1") as engine, pytest.raises(MopeqError, match=r"the Ray cluster at 127\.0\.0\.1:1"):
        pipeline.quantize(str(model), tmp_path / "repo", RECIPE, engine=engine)


def test_without_ray_one_line_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SystemExit) as ended:
        cli.main(["quantize", str(model), str(tmp_path / "repo"), "--engine", "ray"])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: --engine ray needs Ray; pip install 'mopeq-hub[ray]'\n"


def test_without_an_address_a_cluster_is_started_and_stopped(
    model: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mopeq_hub.cli", "quantize", str(model), str(tmp_path / "repo")]
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as home:
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": home}
        environment.pop("RAY_ADDRESS", None)
        options = ["--recipe", "mopeq", "--engine", "ray", "--bits", "2,4", "--json"]
        ended = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert len(list(Path(home).glob("ray/session_2*/logs/raylet.out"))) == 1
        assert not [each for each in psutil.process_iter(["cmdline"]) if home in " ".join(each.info["cmdline"] or [])]
    assert ended.stderr == "", "Ray's own words are not shown"
    assert contents(tmp_path / "repo") == whole
