"""Where a model comes from: a folder or a Hub repo, pinned, with just the files that are asked for."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mopeq_hub import MopeqError
from mopeq_hub.errors import UsageError
from mopeq_hub.model import open_model
from mopeq_hub.source import companions, open_source
from tests.hub import HubServer


def test_a_folders_commit_is_its_contents(shapes: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    shutil.copytree(shapes, copy)
    assert open_source(str(copy)).commit == open_source(str(shapes)).commit
    (copy / "README.md").write_text("changed")
    assert open_source(str(copy)).commit != open_source(str(shapes)).commit


def test_a_revision_is_resolved_to_a_commit_at_once(hub: HubServer) -> None:
    first = hub.add_repo("alice/model", {"config.json": b"{}"})
    source = open_source("alice/model@main")
    hub.commit("alice/model", {"config.json": b'{"later": 1}'})
    assert (source.commit, source.location) == (first, f"alice/model@{first}")
    assert source.path("config.json").read_bytes() == b"{}"
    assert open_source(f"alice/model@{first}").commit == first


def test_a_hub_model_is_opened_from_config_and_headers_alone(hub: HubServer, shapes: Path) -> None:
    hub.add_repo("alice/shapes", shapes)
    model = open_model("alice/shapes")
    assert len(model.layout.experts) == 96
    assert hub.traffic("alice/shapes").downloaded < 0.3 * model.checkpoint.nbytes
    matrix = next(iter(model.layout.experts.values()))[0]
    local = open_model(str(shapes))
    assert np.array_equal(matrix.read(model.checkpoint).values, matrix.read(local.checkpoint).values)


@pytest.mark.parametrize(
    ("name", "words"),
    [("alice/none", "does not exist"), ("alice/model@v9", "no such revision"), ("alice/closed", "does not exist")],
)
def test_what_cannot_be_had_is_said_in_words(name: str, words: str, hub: HubServer) -> None:
    hub.add_repo("alice/model", {"config.json": b"{}"})
    hub.add_repo("alice/closed", {"config.json": b"{}"}, private=True)
    with pytest.raises(MopeqError, match=words):
        open_source(name)


def test_a_gated_model_says_how_to_get_in(hub: HubServer, shapes: Path) -> None:
    hub.add_repo("alice/gated", shapes, gated="manual")
    with pytest.raises(MopeqError, match=r"gated.*terms"):
        open_model("alice/gated")


def test_a_server_that_fails_is_named(hub: HubServer) -> None:
    hub.add_repo("alice/model", {"config.json": b"{}"})
    hub.fail_next("/api/models/alice/model", status=500, times=20)
    with pytest.raises(MopeqError, match="alice/model"):
        open_source("alice/model")


@pytest.mark.parametrize("name", ["./missing", "/no/where", "not a name", "a/b/c", ""])
def test_a_name_that_can_be_neither_is_wrong_usage(name: str) -> None:
    with pytest.raises(UsageError):
        open_source(name)


def test_companions_are_processor_tokenizer_template_generation_config_and_licence(tmp_path: Path) -> None:
    taken = """LICENSE LICENSE.txt NOTICE added_tokens.json additional_chat_templates/rag.jinja chat_template.jinja
        chat_template.json generation_config.json merges.txt preprocessor_config.json processor_config.json vocab.json
        special_tokens_map.json tokenizer.json tokenizer.model tokenizer_config.json video_preprocessor_config.json"""
    left = ["README.md", "config.json", "model.safetensors", "modeling.py", "eval.jsonl", "images/a.png", "x.bin"]
    for name in taken.split() + left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(companions(open_source(str(tmp_path)))) == sorted(taken.split())


def test_a_link_to_outside_is_never_published(shapes: Path, tmp_path: Path) -> None:
    folder, secret = tmp_path / "model", tmp_path / "token"
    shutil.copytree(shapes, folder)
    secret.write_text("hf_secret")
    (folder / "NOTICE").symlink_to(secret)
    with pytest.raises(MopeqError, match="NOTICE of model is a link"):
        companions(open_source(str(folder)))


def test_a_snapshot_of_the_hubs_cache_is_made_of_links_and_that_is_fine(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "repo" / "blobs", tmp_path / "repo" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/1")
    assert companions(open_source(str(snapshot))) == ["tokenizer.json"]


def test_code_and_pickles_are_no_companions(tmp_path: Path) -> None:
    for name in ("tokenizer_x.py", "vocab.pkl", "tokenizer.bin", "LICENSE.py", "chat_template.py", "vocab.json.py"):
        (tmp_path / name).touch()
    assert companions(open_source(str(tmp_path))) == []


def test_what_is_not_the_models_own_does_not_change_its_commit(shapes: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shapes, copy)
    (copy / "notes.txt").write_text("x")
    shutil.rmtree(copy / "images")
    assert open_source(str(copy)).commit == open_source(str(shapes)).commit
