"""A model that only passes through: little of it is on the disk at any time, and what is published is the same."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from model_signing import verifying

from mopeq_hub import MopeqError, Recipe, pipeline, publish, workplace
from mopeq_hub.check import check
from mopeq_hub.progress import Advance, Quiet
from mopeq_hub.quantization import run
from tests.conftest import many_shards
from tests.hub import HubServer, client_pointed_at

SHARDS = 8
RECIPE = Recipe(bits=(2, 4))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return many_shards(tmp_path / "source", SHARDS)


@pytest.fixture
def hub(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with the model in many files, and a client with nothing cached."""
    monkeypatch.setenv("MOPEQ_HOME", str(tmp_path / "mopeq-home"))
    with HubServer(tmp_path / "server") as server, client_pointed_at(server, tmp_path / "home"):
        server.add_repo("alice/shapes", model)
        monkeypatch.setenv("HF_TOKEN", server.token("alice"))
        yield server


class Looking(Quiet):
    """Looks at the disk whenever something has moved."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self.most_sources = self.most_outputs = 0

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "bytes") -> Iterator[Advance]:
        yield self._look

    def _look(self, amount: int) -> None:
        self.most_sources = max(self.most_sources, len(list(self._work.rglob("source/*.safetensors"))))
        self.most_outputs = max(self.most_outputs, len(list(self._work.rglob("repo/*.safetensors"))))


def weights(hub: HubServer, repo: str) -> dict[str, bytes]:
    return {name: data for name, data in hub.files(repo).items() if name.endswith((".safetensors", "index.json"))}


def test_it_publishes_the_same_with_a_few_shards_on_the_disk(
    hub: HubServer, some_questions: Path, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    looking, key = Looking(workplace.home()), str(keys[0])
    publication = publish(
        "alice/shapes", "alice/streamed", RECIPE, questions=some_questions, stream=True, sign=key, progress=looking
    )
    assert 0 < looking.most_sources <= 3
    assert 0 < looking.most_outputs <= 2
    whole = publish("alice/shapes", "alice/whole", RECIPE, questions=some_questions, compare=False, stream=False)
    assert weights(hub, "alice/streamed") == weights(hub, "alice/whole")
    assert publication.manifest == whole.manifest
    assert publication.fidelity is not None
    assert whole.fidelity is not None
    assert (publication.fidelity["method"], whole.fidelity["method"]) == ("blocks", "whole")
    assert publication.fidelity["kl"]["mean"] == pytest.approx(whole.fidelity["kl"]["mean"], rel=0.05)
    assert len(publication.fidelity["layers"]["errors"]) == 4
    assert [finding.trouble for finding in check("alice/streamed")] == [None] * 9, "with the signature"
    assert not list(workplace.home().rglob("*.safetensors"))
    copy = HfApi().snapshot_download("alice/streamed", local_dir=tmp_path / "copy")
    verifier = verifying.Config().use_elliptic_key_verifier(public_key=keys[1])
    verifier.verify(Path(copy), Path(copy) / "model.sig")


def test_a_stopped_run_sends_nothing_twice(
    hub: HubServer, some_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments: Any = {"questions": some_questions, "stream": True, "space": False}
    publish("alice/shapes", "alice/whole", RECIPE, **arguments)
    once = hub.traffic("alice/whole").uploaded
    real, seen = run.quantize_unit, []

    def failing(*anything: Any) -> None:
        seen.append(anything)
        if len(seen) == 5:
            raise ConnectionResetError(104, "connection reset")
        real(*anything)

    with monkeypatch.context() as patch:
        patch.setattr(run, "quantize_unit", failing)
        with pytest.raises(ConnectionResetError):
            publish("alice/shapes", "alice/stopped", RECIPE, **arguments)
    assert set(hub.files("alice/stopped")) <= {".gitattributes"}, "nothing is published yet"
    before = hub.traffic("alice/shapes").downloaded
    publish("alice/shapes", "alice/stopped", RECIPE, **arguments)
    published, whole = hub.files("alice/stopped"), hub.files("alice/whole")
    assert {name for name in whole if published[name] != whole[name]} == {"README.md"}, "the card names its repo"
    assert hub.traffic("alice/stopped").uploaded == pytest.approx(once, rel=0.02)
    total = sum(path.stat().st_size for path in (tmp_path / "source").glob("*.safetensors"))
    assert hub.traffic("alice/shapes").downloaded - before < 0.7 * total


def test_it_is_chosen_where_the_disk_is_too_small(
    hub: HubServer, some_questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workplace, "free_disk", lambda path: 5_500_000)
    publication = publish("alice/shapes", "alice/small", RECIPE, questions=some_questions, space=False)
    assert publication.fidelity is not None
    assert publication.fidelity["method"] == "blocks"


def test_a_disk_too_small_even_for_that_is_told_before_anything_comes(
    hub: HubServer, some_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workplace, "free_disk", lambda path: 1_000_000)
    with pytest.raises(MopeqError, match="GB of disk"):
        publish("alice/shapes", "alice/small", RECIPE, questions=some_questions)
    assert not list((tmp_path / "home").rglob("*.safetensors")), "only heads of files were looked at"
    assert not hub.has_repo("alice/small")


def test_too_little_memory_is_told_before_anything_comes(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workplace, "free_memory", lambda: 300_000_000)
    with pytest.raises(MopeqError, match=r"needs 1\.\d GB of memory, and 0\.3 GB are free"):
        publish("alice/shapes", "alice/small", RECIPE)


def test_a_plan_says_what_it_takes(hub: HubServer, model: Path) -> None:
    planned = pipeline.plan("alice/shapes", RECIPE)
    sizes = [path.stat().st_size for path in model.glob("*.safetensors")]
    assert planned.needs.download == sum(sizes)
    assert planned.needs.cache == sum(sizes)
    assert 1_000_000 < planned.needs.upload == planned.needs.disk < sum(sizes)
    assert not planned.needs.passing
    assert json.loads(json.dumps(asdict(planned.needs)))["memory"] > 1_000_000_000
