"""A publication says who made it, when and in which run; what was quantized and not yet published says nothing."""

import json
from pathlib import Path
from typing import Any

import pytest

from mopeq_hub import MopeqError, Recipe, delivery, pipeline, provenance
from mopeq_hub.manifest import read_manifest
from tests.hub import HubServer, client_pointed_at

JOB = "687fb701029421ae5549d998"
GITHUB = {"GITHUB_SERVER_URL": "https://github.com", "GITHUB_REPOSITORY": "alice/models", "GITHUB_RUN_ID": "4711"}
PAGE = "https://github.com/alice/models/actions/runs/4711"


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of GitHub Actions."""
    for name, value in GITHUB.items():
        monkeypatch.setenv(name, value)


def test_a_publication_names_account_time_and_run(
    runner: None, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (published / "mopeq.json").read_bytes()
    shown: list[dict[str, Any]] = []
    render = delivery.render_space

    def rendered(folder: Path, manifest: dict[str, Any], *rest: Any) -> None:
        shown.append(manifest)
        render(folder, manifest, *rest)

    monkeypatch.setattr(delivery, "render_space", rendered)
    with HubServer(tmp_path / "server") as hub, client_pointed_at(hub, tmp_path / "home"):
        monkeypatch.setenv("HF_TOKEN", hub.token("alice", orgs=["lab"]))
        pushed = pipeline.push(published, "lab/shapes-MoPEQ")
        files = hub.files("lab/shapes-MoPEQ")
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1760000000")
        assert not pipeline.push(published, "lab/shapes-MoPEQ").changed, "the time alone makes no other publication"
    manifest = json.loads(files["mopeq.json"])
    assert manifest["provenance"] == {"who": "alice", "when": "2025-06-15T15:06:40Z", "run": PAGE}
    assert pushed.manifest == manifest
    assert shown == [manifest, manifest], "the Space is rendered with it, now and from what is there"
    card = files["README.md"].decode()
    assert "by [`alice`](https://huggingface.co/alice) on `2025-06-15 15:06:40 UTC`" in card
    assert f"in the run [`{PAGE}`]({PAGE})" in card
    assert (published / "mopeq.json").read_bytes() == before, "the folder that is pushed stays as it is"


def test_a_folder_has_no_account(published: Path) -> None:
    made = read_manifest(published)["provenance"]
    assert made == {"who": None, "when": "2025-06-15T15:06:40Z", "run": None}
    assert "Made on `2025-06-15 15:06:40 UTC`." in (published / "README.md").read_text()


def test_what_is_quantized_is_not_published_yet(shapes: Path, tmp_path: Path) -> None:
    assert "provenance" not in pipeline.quantize(str(shapes), tmp_path / "repo", Recipe()).manifest


def test_a_job_on_the_hub_is_a_run_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_ID", JOB)
    assert provenance.run("alice") is None, "anything may set a JOB_ID"
    monkeypatch.setenv("ACCELERATOR", "none")
    assert provenance.run("alice") == f"https://huggingface.co/jobs/alice/{JOB}"
    assert provenance.run(None) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GITHUB_SERVER_URL", "http://github.com"),
        ("GITHUB_SERVER_URL", "https://github.com/)["),
        ("GITHUB_REPOSITORY", "alice"),
        ("GITHUB_RUN_ID", "4711/../.."),
        ("GITHUB_RUN_ID", ""),
    ],
)
def test_what_cannot_be_a_runs_address_is_none(
    name: str, value: str, runner: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert provenance.run("alice") is None


def test_without_a_set_time_it_is_now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    monkeypatch.setattr("time.time", lambda: 1_700_000_000.9)
    assert provenance.moment() == "2023-11-14T22:13:20Z"


@pytest.mark.parametrize("epoch", ["yesterday", "9" * 30])
def test_a_time_that_is_none_is_told_before_any_work(
    epoch: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    with pytest.raises(MopeqError, match="SOURCE_DATE_EPOCH"):
        pipeline.publish(str(shapes), str(tmp_path / "target"), Recipe())
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("change", [{"run": "javascript:alert(1)"}, {"when": "now"}, {"who": 5}, {"token": "x"}])
def test_provenance_of_another_form_is_refused(change: dict[str, Any], publication: Path) -> None:
    manifest = json.loads((publication / "mopeq.json").read_text())
    manifest["provenance"] |= change
    (publication / "mopeq.json").write_text(json.dumps(manifest))
    with pytest.raises(MopeqError, match="at provenance"):
        read_manifest(publication)


def test_an_older_publication_says_nothing(publication: Path) -> None:
    manifest = json.loads((publication / "mopeq.json").read_text())
    del manifest["provenance"]
    (publication / "mopeq.json").write_text(json.dumps(manifest))
    assert "Made " not in pipeline.card(publication).read_text()
