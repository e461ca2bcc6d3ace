"""The catalog: what it may say, what is stale and why, and what becomes of an entry that cannot be done."""

import json
from collections.abc import Callable, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mopeq_hub import cli, pipeline, staleness
from mopeq_hub.catalog import BrokenEntry, Entry, read_catalog
from mopeq_hub.errors import MopeqError
from mopeq_hub.recipe import Recipe
from mopeq_hub.recipes import best
from mopeq_hub.republishing import republish
from tests.catalog.conftest import MODEL, MODEL_FILES, TO, run, write
from tests.conftest import SHAPES
from tests.hub import HubServer


def reasons(capsys: pytest.CaptureFixture[str], *entries: Any) -> list[list[str]]:
    """Why each entry is stale, by a run that only looks."""
    status, out, error = run(capsys, write(*entries), "--dry-run", "--json")
    assert (status, error) == (0, ""), out
    return [entry["reasons"] for entry in json.loads(out)["entries"]]


def test_an_entry_says_what_publish_could_be_told() -> None:
    text = """
    - model: a/b@v1
      to: c/d
      recipe: {bits: "2,4", scope: layer, group_size: 32, symmetric: false}
      questions: q.jsonl
      space: false
      private: true
      trust_remote_code: true
    - {model: a/b, to: ./out}
    - {model: a/b, to: c/f, recipe: {bits: [2, 4]}}
    - {model: a/b, to: c/e, recipe: mopeq}
    """
    recipe = Recipe(bits=(2, 4), scope="layer", group_size=32, symmetric=False)
    assert read_catalog(text) == [
        Entry(1, "a/b@v1", "c/d", recipe, "q.jsonl", False, True, True),
        Entry(2, "a/b", "./out", best()),
        Entry(3, "a/b", "c/f", replace(best(), bits=(2, 4))),
        Entry(4, "a/b", "c/e", Recipe()),
    ]


def test_an_entry_can_be_written_down_and_read_again() -> None:
    entries = read_catalog("[{model: a/b, to: c/d, recipe: {quantizer: gptq}, questions: q.jsonl, private: true}]")
    assert all(isinstance(entry, Entry) for entry in entries)
    assert read_catalog(json.dumps([entry.written() for entry in entries if isinstance(entry, Entry)])) == entries


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"model": "a/b", "to": "c/d", "bits": 3}, "it has an unknown key bits; choose from model, to, recipe"),
        ({"model": "a/b"}, "it has no to"),
        ({"to": "c/d"}, "it has no model"),
        ({"model": "a/b", "to": ""}, "it has no to"),
        ({"model": ["a/b"], "to": "c/d"}, "its model is a list, not text"),
        ({"model": "a/b", "to": "c/d", "space": "yes"}, "its space is 'yes', not true or false"),
        ({"model": "a/b", "to": "c/d\x07"}, "its to holds control characters"),
        ({"model": "a/b", "to": "d" * 300 + "/x"}, "file name too long"),
        ({"model": "a/b", "to": "c/d", "recipe": {"bits": 5}}, "bits 5 are not among"),
        ({"model": "a/b", "to": "c/d", "recipe": {"bits": {"a": 1}}}, "are not whole numbers"),
        ({"model": "a/b", "to": "c/d", "recipe": {"group-size": 64}}, "a recipe has no group-size; choose from"),
        ({"model": "a/b", "to": "c/d", "recipe": {"calibration": "0" * 64}}, "a recipe has no calibration"),
        ({"model": "a/b", "to": "c/d", "recipe": {"scope": "expert"}}, "--scope 'expert' does not exist"),
        ({"model": "a/b", "to": "c/d", "recipe": "finest"}, "there is no recipe 'finest'; choose from mopeq"),
        ("a/b", "it is not a mapping"),
        (None, "it is not a mapping"),
        ({"model": "a/b", "to": "X/Y"}, "entry 1 publishes there already"),
    ],
)
def test_an_entry_that_is_not_in_order_is_one_line_and_the_others_stay(entry: Any, words: str) -> None:
    first, broken, last = read_catalog(
        json.dumps([{"model": "a/b", "to": "x/y"}, entry, {"model": "a/b", "to": "x/z"}])
    )
    assert isinstance(broken, BrokenEntry)
    assert words in broken.error
    assert len(broken.error.splitlines()) == 1
    assert broken.number == 2
    assert isinstance(first, Entry)
    assert isinstance(last, Entry)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: a/b\nto: c/d\n", "is not a list of publications"),
        ("- [\n", "is not YAML in line"),
        ("- &a [x, x]\n- [*a, *a]\n", "uses an alias (*) in line 2"),
        ("- !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
        ("[" * 500, "is not YAML"),
        ("- " + "a" * 300_000, "has more than 200,000 bytes"),
        ("- \x00\n", "is not YAML"),
    ],
)
def test_a_catalog_that_is_none_is_one_line(
    text: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "catalog.yaml").write_text(text)
    status, _, error = run(capsys, str(tmp_path / "catalog.yaml"))
    assert status in (1, 2)
    assert words in error
    assert len(error.splitlines()) == 1
    with pytest.raises(MopeqError):
        read_catalog(text if "\n" in text else text + "\n")


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_catalog_that_cannot_be_read_is_one_line(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content:
        (tmp_path / "catalog.yaml").write_bytes(content)
    status, _, error = run(capsys, str(tmp_path / "catalog.yaml"))
    assert status == 1
    assert error.startswith(f"error: the catalog {tmp_path}/catalog.yaml ")
    assert len(error.splitlines()) == 1


def test_the_catalog_that_comes_with_the_project_can_be_read_and_so_can_its_example() -> None:
    text = (Path(__file__).parents[2] / "catalog.yaml").read_text()
    assert read_catalog(text) == []
    lines = [line.removeprefix("#").removeprefix(" ") for line in text.splitlines()[3:-1]]
    (entry,) = read_catalog("\n".join(lines))
    assert isinstance(entry, Entry)
    assert entry.recipe == Recipe(bits=(2, 4), scope="layer")


def test_an_empty_catalog_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["republish", str(Path(__file__).parents[2] / "catalog.yaml")])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "catalog is an empty catalog: nothing to do\n"


def test_what_is_stale_and_why(hub: HubServer, put: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    put(TO)
    entry: dict[str, Any] = {"model": MODEL, "to": TO}
    assert reasons(capsys, entry, {**entry, "to": "alice/new"}) == [[], ["nothing is published there"]]
    before = hub.head("alice/shapes")

    assert reasons(capsys, {**entry, "recipe": {"bits": [2, 4], "seed": 3}}) == [
        ["the recipe changed: bits from 2,3,4 to 2,4, seed from 0 to 3"]
    ]
    after = hub.commit("alice/shapes", {"README.md": b"new"})
    moved = f"the source's commit moved from {before[:12]} to {after[:12]}"
    assert reasons(capsys, entry) == [[moved]]
    pinned = {**entry, "model": f"alice/shapes@{before}"}
    assert reasons(capsys, pinned) == [[]]

    whole = hub.files(TO)
    manifest = json.loads(whole["mopeq.json"])
    older = {**manifest, "tool": {"format_version": 1}, "publication": "older"}
    hub.commit(TO, {"mopeq.json": json.dumps(older).encode()})
    assert reasons(capsys, pinned) == [["mopeq-hub's format went from version 1 to 2"]]
    hub.commit(TO, {"mopeq.json": b'{"publication": [], "recipe": 7, "source": null}'})
    assert reasons(capsys, pinned)[0][0] == f"the source's commit moved from an unknown one to {before[:12]}"
    hub.commit(TO, {"mopeq.json": whole["mopeq.json"], "tokenizer.json": None})
    assert reasons(capsys, pinned) == [["files of the publication are missing or damaged"]]
    hub.commit(TO, {"tokenizer.json": whole["tokenizer.json"], "README.md": b"# nothing\n"})
    assert "its check fails: the card's library_name is None" in reasons(capsys, pinned)[0][0]


def test_what_a_smaller_machine_published_as_best_is_not_stale_on_a_larger_one(
    hub: HubServer, put: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(TO, recipe=replace(best(), signal="distortion", allocator="knapsack"))
    entry = {"model": MODEL, "to": TO, "recipe": "best"}
    with monkeypatch.context() as patch:
        patch.setattr(staleness, "open_model", lambda name: pytest.fail("what is fresh is not opened"))
        assert reasons(capsys, entry) == [[]]
    other = {**entry, "recipe": {"signal": "best", "allocator": "measured", "budget": "3bpw"}}
    ((why, *_),) = reasons(capsys, other)
    assert "budget from 3.297bpw to 3bpw" in why


def test_a_folder_is_looked_at_like_the_hub(
    publication: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    entry = {"model": str(SHAPES), "to": "./publication"}
    assert reasons(capsys, entry) == [[]]
    (publication / "README.md").write_text("# nothing\n")
    assert "its check fails" in reasons(capsys, entry)[0][0]


def test_what_publishing_again_would_not_mend_is_not_published_again(
    hub: HubServer, put: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    put(TO)
    before = hub.commit(TO, {"modeling.py": b"import os"})
    status, _, error = run(capsys, write({"model": MODEL, "to": TO}))
    assert status == 1
    assert error == (
        f"error: entry 1, to {TO}: {TO} fails its check: modeling.py is code, and no part of the model's own; "
        "take that file away\n"
    )
    assert hub.head(TO) == before


def test_what_is_damaged_is_published_again_and_looked_at_again(
    hub: HubServer, put: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    put(TO, "alice/two")
    (card,) = (hub.files(TO)[name] for name in ("README.md",))
    for to in (TO, "alice/two"):
        hub.commit(to, {"README.md": b"# nothing\n"})
    asked = []

    def publisher(entry: Entry, again: Set[str]) -> None:
        asked.append((entry.to, again))
        if entry.to == TO:
            hub.commit(TO, {"README.md": card})

    catalog = write(
        {"model": MODEL, "to": TO}, {"model": MODEL, "to": "alice/two"}, {"model": MODEL, "to": "alice/new"}
    )
    mended, not_mended, new = republish(catalog, [], publisher, lambda outcome: None)
    assert asked == [(TO, {"main"}), ("alice/two", {"main"}), ("alice/new", set())]
    assert (mended.state, not_mended.state, new.state) == ("republished", "failed", "republished")
    assert str(not_mended.error).startswith("it was published again, and still its check fails: the card's")


def test_publishing_again_does_not_stop_where_the_destination_seems_whole(
    hub: HubServer, put: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(TO)
    assert not pipeline.publish(MODEL, TO, Recipe(), space=False).changed

    def build(*args: Any, **options: Any) -> None:
        raise MopeqError("it is being built")

    monkeypatch.setattr(pipeline, "build", build)
    with pytest.raises(MopeqError, match="it is being built"):
        pipeline.publish(MODEL, TO, Recipe(), space=False, again=True)


def test_what_is_published_again_is_signed_where_that_is_asked_for(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_repo(MODEL, MODEL_FILES)
    status, _, error = run(capsys, write({"model": MODEL, "to": "alice/new"}), "--sign", "missing.pem")
    assert status == 1
    assert error.splitlines()[-1].startswith("error: entry 1, to alice/new: ")
    assert "missing.pem" in error
    assert not hub.has_repo("alice/new")
    Path("catalog.yaml").write_text("[]")
    status, _, error = run(capsys, "catalog.yaml", "--sign", "oidc", "--engine", "jobs")
    assert (status, error[:54]) == (2, "error: a job on the Hub has neither an OIDC identity n")


def test_one_line_for_each_entry_that_cannot_be_done_and_the_others_are(
    hub: HubServer, put: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    put(TO)
    hub.add_repo("alice/other", {"weights.bin": b"precious"})
    catalog = write(
        {"model": "alice/gone", "to": "alice/gone-MoPEQ"},
        {"model": MODEL, "to": "alice/other"},
        {"model": MODEL, "to": TO.upper(), "sapce": True},
        {"model": MODEL, "to": TO},
        {"model": MODEL, "to": TO},
    )
    status, out, error = run(capsys, catalog, "--dry-run")
    assert status == 1
    assert out == f"fresh {TO}\n"
    lines = error.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("error: entry 1, to alice/gone-MoPEQ: alice/gone does not exist, or is private;")
    assert lines[1].startswith("error: entry 2, to alice/other: alice/other holds something that is not a publication;")
    assert lines[2].startswith("error: entry 3, to ALICE/SHAPES-MOPEQ: it has an unknown key sapce;")
    assert lines[3].startswith(f"error: entry 5, to {TO}: entry 4 publishes there already;")
    status, out, _ = run(capsys, catalog, "--dry-run", "--only", "alice/other", "--json")
    assert status == 1
    assert [entry["to"] for entry in json.loads(out)["entries"]] == ["alice/other"]
    assert "the catalog has no me/typo" in run(capsys, catalog, "--only", "me/typo")[2]


def test_a_revoked_token_is_one_line_for_each_entry_and_never_shown(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo(MODEL, MODEL_FILES)
    token = hub.token("alice")
    hub.revoke(token)
    monkeypatch.setenv("HF_TOKEN", token)
    catalog = write(*({"model": MODEL, "to": f"alice/{name}"} for name in "ab"))
    status, out, error = run(capsys, catalog)
    assert status == 1
    assert [line.partition(": ")[2][:21] for line in error.splitlines()] == [
        "entry 1, to alice/a: ",
        "entry 2, to alice/b: ",
    ]
    assert "Invalid credentials" in error
    assert token not in out + error


def test_json_is_one_document_with_a_matrix_of_what_is_stale(
    hub: HubServer, put: Callable[..., None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    put(TO)
    stale = {"model": MODEL, "to": "alice/new"}
    status, out, error = run(capsys, write({"model": MODEL, "to": TO}, stale, "x"), "--dry-run", "--json")
    document = json.loads(out)
    assert (status, error) == (1, "")
    assert [entry["state"] for entry in document["entries"]] == ["fresh", "stale", "failed"]
    assert set(document["entries"][0]) == {"to", "model", "state", "reasons", "commit", "error"}
    assert document["matrix"] == {"include": [stale]}


def test_the_page_of_a_workflow_run_gets_a_table_in_which_names_stay_text(
    hub: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    hub.add_repo(MODEL, MODEL_FILES)
    run(capsys, write({"model": MODEL, "to": "alice/new"}, {"model": "|<b>@x|", "to": "./a|b"}), "--dry-run")
    lines = page.read_text().splitlines()
    assert lines[0] == "### The catalog `catalog`"
    links = "[alice/new](https://huggingface.co/alice/new) | [alice/shapes](https://huggingface.co/alice/shapes)"
    assert f"| {links} | stale | nothing is published there |" in lines
    assert "<b>" not in page.read_text()
    assert all(line.count("|") == 5 for line in lines if line.startswith("|"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dry-run", "--engine", "slurm"], "--engine 'slurm' does not exist"),
        (["--schedule", "@daily"], "--schedule is for --on-hub"),
        (["--flavor", "cpu-xl"], "--flavor is for --engine jobs"),
        (["--issue"], "GITHUB_REPOSITORY is not set"),
        (["--issue", "--only", "x"], "--issue is about the whole catalog"),
    ],
)
def test_options_that_do_not_belong_together_are_refused(
    options: list[str], words: str, hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    status, _, error = run(capsys, write(), *options)
    assert status == 2
    assert words in error
