"""The stages as Python's functions: what they leave alone, and what they need."""

import shutil
from pathlib import Path

import pytest

from mopeq_hub import MopeqError, Recipe, pipeline, publish
from tests.hub import HubServer, client_pointed_at


def test_nothing_is_written_into_the_source(shapes: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(shapes, source, ignore=shutil.ignore_patterns("images", "*.jsonl"))
    for make in (
        lambda: publish(str(source), str(source / "out"), Recipe()),
        lambda: pipeline.quantize(str(source), source / "out", Recipe()),
    ):
        with pytest.raises(MopeqError, match="within each other"):
            make()
    assert not (source / "out").exists()


def test_evaluate_needs_nothing_but_what_the_folder_says(
    hub: HubServer, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("alice/shapes", shapes)
    repo = pipeline.quantize("alice/shapes", tmp_path / "repo", Recipe())
    shutil.rmtree(repo.folder / ".mopeq")
    monkeypatch.setenv("MOPEQ_HOME", str(tmp_path / "another-machine"))
    with client_pointed_at(hub, tmp_path / "another-cache"):
        assert pipeline.evaluate(repo.folder, compare=False)["kl"]["mean"] > 0
