"""Destinations: a publication appears whole, in one commit, or not at all; on the Hub through the real client."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from huggingface_hub import HfApi, ModelCard

from mopeq_hub import MopeqError, Recipe, pipeline, publish
from mopeq_hub.check import check
from mopeq_hub.hub import FolderDestination, HubDestination, destination_for
from mopeq_hub.manifest import read_manifest
from mopeq_hub.progress import Advance, Quiet
from tests.hub import HubServer


@pytest.fixture
def alice(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HF_TOKEN", hub.token("alice"))
    return "alice"


OLDER = b'{"publication": "older", "files": {"stale.bin": {}}}'


@pytest.fixture
def repo(publication: Path) -> Path:
    """A quantized, measured folder with its card, ready to be pushed."""
    return publication


def test_a_push_is_one_commit_with_the_tag_of_its_recipe(hub: HubServer, alice: str, repo: Path) -> None:
    publication = pipeline.push(repo, "alice/shapes-MoPEQ")
    name = read_manifest(repo)["publication"]
    assert publication.changed
    assert publication.commit == hub.head("alice/shapes-MoPEQ") == hub.tags("alice/shapes-MoPEQ")[name]
    files = hub.files("alice/shapes-MoPEQ")
    ours = {path.relative_to(repo).as_posix(): path.read_bytes() for path in repo.rglob("*") if path.is_file()}
    made_for_it = {name for name in ours if files[name] != ours[name]}
    assert made_for_it == {"README.md", "mopeq.json"}, "the card names the repo, the manifest who published it"
    commits = [commit for commit in hub.history("alice/shapes-MoPEQ") if "mopeq" in commit.title]
    assert len(commits) == 1
    assert hub.entries("alice/shapes-MoPEQ")["model-00001-of-00003.safetensors"].is_lfs


def test_the_space_is_published_beside_it_and_both_name_each_other(
    hub: HubServer, alice: str, shapes: Path, some_questions: Path
) -> None:
    publish(str(shapes), "alice/shapes-MoPEQ", Recipe(), questions=some_questions, compare=False)
    space = hub.files("alice/shapes-MoPEQ", repo_type="space")
    assert "app.py" in space
    assert b"alice/shapes-MoPEQ" in space["publication.json"]
    assert str(shapes).encode() not in b"".join(space.values()), "no path of this machine is published"
    card = hub.files("alice/shapes-MoPEQ")["README.md"].decode()
    assert "spaces/alice/shapes-MoPEQ" in card
    assert [finding.trouble for finding in check("alice/shapes-MoPEQ")] == [None] * 8


def test_publishing_the_same_again_changes_nothing_and_says_so(
    hub: HubServer, alice: str, repo: Path, shapes: Path
) -> None:
    pipeline.push(repo, "alice/shapes-MoPEQ")
    heads = [hub.head("alice/shapes-MoPEQ", repo_type=kind) for kind in ("model", "space")]
    assert not pipeline.push(repo, "alice/shapes-MoPEQ").changed
    assert not publish(str(shapes), "alice/shapes-MoPEQ", Recipe()).changed
    assert [hub.head("alice/shapes-MoPEQ", repo_type=kind) for kind in ("model", "space")] == heads


@pytest.mark.parametrize("path", ["/preupload/", "/info/lfs/objects/batch", "/commit/"])
def test_a_push_that_fails_leaves_no_repo_behind(path: str, hub: HubServer, alice: str, repo: Path) -> None:
    hub.fail_next(path, status=403, times=5)
    with pytest.raises(MopeqError, match="alice/shapes-MoPEQ"):
        pipeline.push(repo, "alice/shapes-MoPEQ")
    assert not hub.has_repo("alice/shapes-MoPEQ")
    hub.clear_faults()
    assert pipeline.push(repo, "alice/shapes-MoPEQ").changed, "the same command works afterwards"


def test_an_update_that_fails_leaves_the_old_publication(hub: HubServer, alice: str, repo: Path) -> None:
    older = {"mopeq.json": OLDER, "stale.bin": b"x", "notes.txt": b"mine"}
    before = hub.add_repo("alice/shapes-MoPEQ", older)
    hub.fail_next("/commit/", status=500, times=20)
    with pytest.raises(MopeqError):
        pipeline.push(repo, "alice/shapes-MoPEQ")
    assert hub.head("alice/shapes-MoPEQ") == before
    hub.clear_faults()
    pipeline.push(repo, "alice/shapes-MoPEQ")
    files = hub.files("alice/shapes-MoPEQ")
    assert "stale.bin" not in files, "what an older publication left is gone"
    assert files["notes.txt"] == b"mine", "what somebody put beside it stays"


def test_a_repo_that_holds_something_else_is_not_overwritten(hub: HubServer, alice: str, repo: Path) -> None:
    before = hub.add_repo("alice/other", {"weights.bin": b"precious"})
    with pytest.raises(MopeqError, match="not a publication"):
        pipeline.push(repo, "alice/other")
    assert hub.head("alice/other") == before


@pytest.mark.parametrize(
    ("role", "dest", "words"),
    [
        ("read", "alice/new", "can only read"),
        ("write", "bob/new", "may not write"),
        (None, "alice/new", "needs a token"),
    ],
)
def test_a_token_without_write_access_is_told_before_any_work(
    role: Literal["read", "write"] | None,
    dest: str,
    words: str,
    hub: HubServer,
    shapes: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = hub.token("alice", role=role) if role else None
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(MopeqError, match=words) as raised:
        publish(str(shapes), dest, Recipe())
    assert token is None or token not in str(raised.value)
    assert not hub.has_repo(dest)


def test_an_organization_one_belongs_to_can_be_written_to(
    hub: HubServer, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token("alice", orgs=["lab"]))
    assert pipeline.push(repo, "lab/shapes-MoPEQ", space=False).commit == hub.head("lab/shapes-MoPEQ")


def test_a_full_account_is_said_in_words(hub: HubServer, alice: str, repo: Path) -> None:
    hub.set_quota("alice", 1000, status=403)
    with pytest.raises(MopeqError, match="the Hub refused alice/shapes-MoPEQ"):
        pipeline.push(repo, "alice/shapes-MoPEQ")
    assert not hub.has_repo("alice/shapes-MoPEQ")


def test_a_private_publication_stays_private(hub: HubServer, alice: str, repo: Path) -> None:
    pipeline.push(repo, "alice/secret", private=True)
    assert HfApi().model_info("alice/secret").private
    assert HfApi().space_info("alice/secret").private


def test_a_dry_run_pushes_nothing(hub: HubServer, alice: str, repo: Path) -> None:
    publication = pipeline.push(repo, "alice/shapes-MoPEQ", dry_run=True)
    assert publication.commit is None
    assert not hub.has_repo("alice/shapes-MoPEQ")


def test_only_what_was_measured_as_it_is_can_be_pushed(repo: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "target")
    (repo / "tokenizer_config.json").write_text("{}")
    with pytest.raises(MopeqError, match=r"not those its mopeq\.json describes"):
        pipeline.push(repo, target)


@pytest.mark.parametrize(("missing", "words"), [("fidelity.json", "not measured"), ("README.md", "no card")])
def test_a_stage_that_was_left_out_is_named(missing: str, words: str, repo: Path, tmp_path: Path) -> None:
    (repo / missing).unlink()
    with pytest.raises(MopeqError, match=words):
        pipeline.push(repo, str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()


def test_what_was_measured_or_written_since_is_pushed_and_the_weights_are_not_sent_again(
    hub: HubServer, alice: str, repo: Path, shapes: Path, tmp_path: Path
) -> None:
    destinations = ("alice/shapes-MoPEQ", str(tmp_path / "target"))
    for destination in destinations:
        pipeline.push(repo, destination, space=False)
    fidelity = pipeline.evaluate(repo, original=str(shapes), fidelity_tokens=200, compare=False)
    pipeline.card(repo)
    weights = sum(path.stat().st_size for path in repo.glob("*.safetensors"))
    sent = hub.traffic("alice/shapes-MoPEQ").uploaded
    assert sent > weights
    for destination in destinations:
        assert pipeline.push(repo, destination, space=False, dry_run=True).changed
        assert pipeline.push(repo, destination, space=False).changed
        assert not pipeline.push(repo, destination, space=False).changed
    assert json.loads(hub.files("alice/shapes-MoPEQ")["fidelity.json"]) == fidelity
    assert (tmp_path / "target" / "fidelity.json").read_bytes() == (repo / "fidelity.json").read_bytes()
    assert hub.tags("alice/shapes-MoPEQ")[read_manifest(repo)["publication"]] == hub.head("alice/shapes-MoPEQ")
    with open(repo / "README.md", "a") as card:
        card.write("\nIt answers well.\n")
    for destination in destinations:
        assert pipeline.push(repo, destination, space=False).changed
        assert not pipeline.push(repo, destination, space=False).changed
    assert hub.files("alice/shapes-MoPEQ")["README.md"].endswith(b"\nIt answers well.\n")
    assert hub.traffic("alice/shapes-MoPEQ").uploaded - sent < weights / 2


def test_the_space_can_be_made_up_for(hub: HubServer, alice: str, repo: Path) -> None:
    pipeline.push(repo, "alice/shapes-MoPEQ", space=False)
    assert not hub.has_repo("alice/shapes-MoPEQ", repo_type="space")
    assert pipeline.publish_space("alice/shapes-MoPEQ") == hub.head("alice/shapes-MoPEQ", repo_type="space")
    assert pipeline.publish_space("alice/shapes-MoPEQ") is None


def test_a_folder_is_replaced_whole(repo: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    pipeline.push(repo, str(target))
    (target / "mopeq.json").write_bytes(OLDER)
    for name in read_manifest(repo)["files"]:
        (target / name).unlink()
    (target / "stale.bin").write_text("x")
    pipeline.push(repo, str(target))
    assert not (target / "stale.bin").exists()
    assert {path.name for path in tmp_path.iterdir() if "target" in path.name} == {"target", "target-space"}
    assert not list(target.glob(".*")), "nothing of this machine stays in it"


def test_destinations_are_told_apart_by_their_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: HubServer
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(destination_for("alice/model", "m"), HubDestination)
    assert isinstance(destination_for("./alice/model", "m"), FolderDestination)
    (tmp_path / "out" / "model").mkdir(parents=True)
    assert isinstance(destination_for("out/model", "m"), FolderDestination)
    assert destination_for(None, "Qwen/Big-Model@main").name == "./published/Big-Model-MoPEQ"
    monkeypatch.setenv("HF_TOKEN", hub.token("alice"))
    assert destination_for(None, "Qwen/Big-Model@main").name == "alice/Big-Model-MoPEQ"


def test_a_space_that_is_not_ours_is_not_overwritten(hub: HubServer, alice: str, repo: Path, tmp_path: Path) -> None:
    before = hub.add_repo("alice/shapes-MoPEQ", {"app.py": b"mine"}, repo_type="space")
    (tmp_path / "target-space").mkdir()
    (tmp_path / "target-space" / "app.py").write_text("mine")
    for target in ("alice/shapes-MoPEQ", str(tmp_path / "target")):
        with pytest.raises(MopeqError, match="--no-space"):
            pipeline.push(repo, target)
    assert not hub.has_repo("alice/shapes-MoPEQ")
    assert hub.head("alice/shapes-MoPEQ", repo_type="space") == before
    assert (tmp_path / "target-space" / "app.py").read_text() == "mine"
    assert pipeline.push(repo, "alice/shapes-MoPEQ", space=False).changed


def test_a_tag_that_was_not_reached_is_made_up_for(hub: HubServer, alice: str, repo: Path) -> None:
    hub.fail_next("/tag/", status=500, times=20)
    with pytest.raises(MopeqError, match="the tag"):
        pipeline.push(repo, "alice/shapes-MoPEQ", space=False)
    hub.clear_faults()
    pipeline.push(repo, "alice/shapes-MoPEQ", space=False)
    assert hub.tags("alice/shapes-MoPEQ") == {read_manifest(repo)["publication"]: hub.head("alice/shapes-MoPEQ")}


class Told(Quiet):
    """Remembers the amounts that each stage was told."""

    def __init__(self) -> None:
        self.stages: dict[str, tuple[int, list[int]]] = {}

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "bytes") -> Iterator[Advance]:
        self.stages[name] = (total, [])
        yield self.stages[name][1].append


def test_every_byte_that_is_moved_is_told(
    hub: HubServer, alice: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOPEQ_HOME", str(tmp_path / "fresh-home"))
    hub.add_repo("alice/shapes", shapes)
    told = Told()
    repo = pipeline.quantize("alice/shapes", tmp_path / "repo", Recipe(), progress=told)
    assert repo.manifest["source"]["commit"] == hub.head("alice/shapes")
    pipeline.evaluate(repo.folder, compare=False, progress=told)
    pipeline.card(repo.folder)
    pipeline.push(repo.folder, "alice/shapes-MoPEQ", space=False, progress=told)
    stages = {"download, measure", "download, quantize", "upload", "measure original", "measure published"}
    assert stages <= set(told.stages)
    assert all(sum(amounts) == total for total, amounts in told.stages.values())
    assert told.stages["download, measure"][0] > 5_700_000


def test_a_card_of_a_hub_source_names_it(hub: HubServer, alice: str, shapes: Path, tmp_path: Path) -> None:
    commit = hub.add_repo("alice/shapes", shapes)
    repo = pipeline.quantize("alice/shapes@main", tmp_path / "repo", Recipe())
    card = ModelCard.load(pipeline.card(repo.folder, destination_for("alice/shapes-MoPEQ", "")))
    assert card.data.base_model == "alice/shapes"
    assert card.data.to_dict()["base_model_relation"] == "quantized"
    assert card.data.license == "apache-2.0"
    assert f"alice/shapes@{commit}" in card.content
    assert 'from_pretrained("alice/shapes-MoPEQ"' in card.content
    assert HfApi().model_info("alice/shapes").sha == commit


@pytest.mark.parametrize("name", ["notes.txt", ".git/config"])
def test_a_folder_with_files_of_somebody_elses_is_not_replaced(name: str, repo: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    pipeline.push(repo, str(target), space=False)
    (target / name).parent.mkdir(exist_ok=True)
    (target / name).write_text("mine")
    with pytest.raises(MopeqError, match=name.split("/")[0]):
        pipeline.push(repo, str(target))
    assert (target / name).read_text() == "mine"


def test_a_damaged_publication_is_published_again(hub: HubServer, alice: str, repo: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    for destination in (str(target), "alice/shapes-MoPEQ"):
        pipeline.push(repo, destination, space=False)
    (target / "tokenizer.json").write_text("{}")
    hub.commit("alice/shapes-MoPEQ", {"tokenizer.json": None})
    for destination in (str(target), "alice/shapes-MoPEQ"):
        assert pipeline.push(repo, destination, space=False).changed
        assert not pipeline.push(repo, destination, space=False).changed
    assert (target / "tokenizer.json").read_bytes() == (repo / "tokenizer.json").read_bytes()
    tags = hub.tags("alice/shapes-MoPEQ")
    assert tags[read_manifest(repo)["publication"]] == hub.head("alice/shapes-MoPEQ")


@pytest.mark.parametrize("exchanges", [True, False])
def test_an_interrupted_replacement_leaves_the_old_folder(
    exchanges: bool, repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    pipeline.push(repo, str(target), space=False)
    (target / "tokenizer.json").write_text("{}")
    before = sorted(path.name for path in target.iterdir())

    def stop(path: Path, other: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return rename(path, other)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", stop)
    if exchanges:
        pipeline.push(repo, str(target), space=False)
        assert (target / "tokenizer.json").read_text() != "{}", "an exchange renames nothing and cannot be interrupted"
    else:
        monkeypatch.setattr("mopeq_hub.hub.folder._exchange", lambda one, other: False)
        with pytest.raises(KeyboardInterrupt):
            pipeline.push(repo, str(target), space=False)
        assert (target / "tokenizer.json").read_text() == "{}"
    assert sorted(path.name for path in target.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_repo_that_somebody_filled_meanwhile_is_left_alone(
    hub: HubServer, alice: str, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(api: HfApi, repo_id: str, *rest: Any, **options: Any) -> Any:
        hub.commit("alice/shapes-MoPEQ", {"theirs.txt": b"theirs"})
        return create_commit(api, repo_id, *rest, **options)

    create_commit = HfApi.create_commit
    monkeypatch.setattr(HfApi, "create_commit", meanwhile)
    with pytest.raises(MopeqError, match="alice/shapes-MoPEQ"):
        pipeline.push(repo, "alice/shapes-MoPEQ")
    assert hub.files("alice/shapes-MoPEQ")["theirs.txt"] == b"theirs"
    assert "mopeq.json" not in hub.files("alice/shapes-MoPEQ")


def test_a_failed_rollback_does_not_hide_the_trouble(hub: HubServer, alice: str, repo: Path) -> None:
    hub.fail_next("/commit/", status=403, times=5, message="quota exceeded")
    hub.fail_next("/api/repos/delete", status=500, times=20)
    with pytest.raises(MopeqError, match="quota exceeded"):
        pipeline.push(repo, "alice/shapes-MoPEQ")


def test_a_card_without_a_destination_gets_one_when_it_is_pushed(hub: HubServer, alice: str, repo: Path) -> None:
    pipeline.card(repo)
    assert "path/to/this/folder" in (repo / "README.md").read_text()
    pipeline.push(repo, "alice/shapes-MoPEQ")
    assert b'from_pretrained("alice/shapes-MoPEQ"' in hub.files("alice/shapes-MoPEQ")["README.md"]
    (repo / "README.md").write_text((repo / "README.md").read_text() + "\nEdited by hand.\n")
    pipeline.push(repo, "alice/other", space=False)
    assert b"Edited by hand." in hub.files("alice/other")["README.md"]


def test_the_space_of_a_folder_keeps_its_original(shapes: Path, some_questions: Path, tmp_path: Path) -> None:
    publish(str(shapes), str(tmp_path / "model"), Recipe(), questions=some_questions, compare=False)
    made = (tmp_path / "model-space" / "publication.json").read_text()
    assert (tmp_path / "model-space" / json.loads(made)["original"]).resolve() == shapes.resolve()
    assert pipeline.publish_space(str(tmp_path / "model")) is None
    assert (tmp_path / "model-space" / "publication.json").read_text() == made
