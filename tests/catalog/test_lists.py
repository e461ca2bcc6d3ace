"""An entry with several budgets: stale where a branch is, or main is not what the branches make it; mended in part."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from mopeq_hub.catalog import BrokenEntry, Entry, read_catalog
from mopeq_hub.fidelity.variants import recommended
from mopeq_hub.recipe import Recipe
from tests.catalog.conftest import run, write
from tests.catalog.test_catalog import reasons
from tests.conftest import SHAPES, edit_json
from tests.shelf import BUDGETS, REPO, Shelf, shelf_of

FIRST, SECOND = BUDGETS
NOTHING = "nothing is published there"


@pytest.fixture
def shelf(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.chdir(tmp_path)
    with shelf_of(filled, tmp_path) as shelf:
        yield shelf


@pytest.fixture
def entry(shelf: Shelf) -> dict[str, Any]:
    """The catalog's entry for what is on the shelf."""
    recipe = {"bits": [2, 4], "signal": "hessian", "budget": list(BUDGETS)}
    return {"model": str(SHAPES), "to": REPO, "recipe": recipe, "questions": str(shelf.questions)}


def test_several_budgets_are_written_with_commas_or_as_a_list() -> None:
    recipe = Recipe(bits=(2, 4), allocator="knapsack", budget="2.5bpw")
    for written in ("'2.5bpw, 3.0bpw'", "[2.5bpw, 3.0bpw]"):
        (entry,) = read_catalog(
            f"- {{model: a/b, to: c/d, recipe: {{bits: [2, 4], signal: hessian, budget: {written}}}}}\n"
        )
        assert entry == Entry(1, "a/b", "c/d", recipe, budgets=("2.5bpw", "3.0bpw"))
    (alone,) = read_catalog("- {model: a/b, to: c/d, recipe: {bits: [2, 4], signal: hessian, budget: [2.5bpw]}}\n")
    assert alone == Entry(1, "a/b", "c/d", recipe)


@pytest.mark.parametrize("recipe", [{"bits": [2, 4]}, {"signal": "best", "allocator": "measured"}])
def test_it_can_be_written_down_and_read_again(recipe: dict[str, Any]) -> None:
    (entry,) = read_catalog(json.dumps([{"model": "a/b", "to": "c/d", "recipe": {**recipe, "budget": "2.5bpw,12GB"}}]))
    assert isinstance(entry, Entry)
    assert list(entry.recipes()) == ["2.5bpw", "12GB"]
    assert read_catalog(json.dumps([entry.written()])) == [entry]


@pytest.mark.parametrize(
    ("to", "recipe", "words"),
    [
        ("c/d", {"budget": "2.5bpw,2.50bpw"}, "names one budget twice"),
        ("c/d", {"budget": ["2.5bpw", "3 bits"]}, "'3 bits' is not a size"),
        ("c/d", {"budget": "2.5bpw,"}, "are not all sizes"),
        ("c/d", {"budget": "2.5bpw,3bpw", "allocator": "kmeans"}, "knows no --budget"),
        ("c/d@x", {"budget": "2.5bpw,3bpw"}, "c/d@x is a branch, and each of several budgets gets one"),
        ("taken/repo", {"budget": "2.5bpw,3bpw"}, "entry 1 publishes there already"),
    ],
)
def test_a_list_that_is_none_is_one_line(to: str, recipe: dict[str, Any], words: str) -> None:
    branch = {"model": "a/b", "to": "taken/repo@3bpw"}
    _, broken = read_catalog(json.dumps([branch, {"model": "a/b", "to": to, "recipe": recipe}]))
    assert isinstance(broken, BrokenEntry)
    assert words in broken.error
    assert len(broken.error.splitlines()) == 1


def test_what_is_stale_of_a_list_and_why(
    shelf: Shelf, entry: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def found(**recipe: Any) -> list[str]:
        (why,) = reasons(capsys, {**entry, "recipe": {**entry["recipe"], **recipe}})
        return why

    assert found() == []
    assert reasons(capsys, {**entry, "to": "alice/new"}) == [[NOTHING]]
    assert found(bits=[2, 3, 4]) == ["the recipe changed: bits from 2,4 to 2,3,4"]
    assert found(budget=[FIRST, "4.0bpw"]) == [
        f"4.0bpw: {NOTHING}",
        f"main: the budgets changed from {FIRST},{SECOND} to {FIRST},4.0bpw",
    ]
    moved = tmp_path / "moved"
    shutil.copytree(SHAPES, moved, ignore=shutil.ignore_patterns("images", "*.jsonl"))
    edit_json(moved / "generation_config.json", lambda config: config.update(max_new_tokens=7))
    (why,) = reasons(capsys, {**entry, "model": str(moved)})
    assert [each[:30] for each in why] == ["the source's commit moved from"]

    main, first = shelf.hub.files(REPO), shelf.hub.files(REPO, FIRST)
    shelf.hub.commit(REPO, {"fidelity.json": first["fidelity.json"]})
    assert found() == [f"main: the budgets changed from a single one to {FIRST},{SECOND}"]
    fidelity = json.loads(main["fidelity.json"])
    fidelity["variants"][0]["kl"]["mean"] += 1
    shelf.hub.commit(REPO, {"fidelity.json": json.dumps(fidelity).encode()})
    chosen = recommended(json.loads(main["fidelity.json"])["variants"])["name"]
    assert found() == [f"main: it is not {chosen}, the recommended one, compared with the others as they are"]
    shelf.hub.commit(REPO, {"fidelity.json": main["fidelity.json"], "tokenizer.json": None})
    assert found() == ["main: files of the publication are missing or damaged"]
    shelf.hub.commit(REPO, main)
    assert found() == []

    other = json.loads(first["fidelity.json"])
    other["inputs"]["sha256"] = "0" * 64
    shelf.hub.commit(REPO, {"fidelity.json": json.dumps(other).encode()}, revision=FIRST)
    assert found() == ["main: what it compares was measured on different questions"]
    shelf.hub.commit(REPO, {**first, "README.md": b"# nothing\n"}, revision=FIRST)
    assert found()[0].startswith(f"{FIRST}: its check fails: the card's")
    HfApi().delete_branch(REPO, branch=SECOND)
    assert found()[1] == f"{SECOND}: {NOTHING}"


def test_a_list_in_folders_is_looked_at_like_one_on_the_hub(
    shelf: Shelf, entry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, revision in (("out", "main"), *((f"out@{budget}", budget) for budget in BUDGETS)):
        for file, content in shelf.hub.files(REPO, revision).items():
            if file != ".gitattributes":
                Path(name, file).parent.mkdir(parents=True, exist_ok=True)
                Path(name, file).write_bytes(content)
    assert reasons(capsys, {**entry, "to": "./out"}) == [[]]
    shutil.rmtree(f"out@{SECOND}")
    assert reasons(capsys, {**entry, "to": "./out"}) == [[f"{SECOND}: {NOTHING}"]]


def test_just_what_is_stale_of_a_list_is_made_again(
    shelf: Shelf, entry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = shelf.hub.branches(REPO)
    card = shelf.hub.files(REPO)["README.md"]
    damaged = shelf.hub.commit(REPO, {"README.md": b"# nothing\n"})
    status, out, error = run(capsys, write(entry))
    assert (status, out.count("\n")) == (0, 1), error
    assert out.startswith(f"republished {REPO}: main: its check fails: the card's library_name is None")
    assert shelf.hub.head(REPO) not in (before["main"], damaged)
    assert shelf.hub.files(REPO)["README.md"] == card
    assert {**shelf.hub.branches(REPO), "main": ""} == {**before, "main": ""}

    before, files = shelf.hub.branches(REPO), shelf.hub.files(REPO, SECOND)
    HfApi().delete_branch(REPO, branch=SECOND)
    status, out, error = run(capsys, write(entry))
    assert (status, out) == (0, f"republished {REPO}: {SECOND}: {NOTHING}\n"), error
    assert shelf.hub.branches(REPO)[FIRST] == before[FIRST]
    assert shelf.hub.files(REPO, SECOND) == files, "made and proven as it was"
    assert run(capsys, write(entry)) == (0, f"fresh {REPO}\n", "")


def test_a_list_goes_to_a_job_and_to_a_schedule_as_it_is(
    shelf: Shelf, entry: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shelf.hub.add_repo("alice/shapes", SHAPES)
    there = {"model": "alice/shapes", "to": "alice/new", "recipe": entry["recipe"]}
    shelf.hub.plan_job(["done"])
    status, out, _ = run(capsys, write(there), "--engine", "jobs")
    assert (status, out) == (0, f"republished alice/new: {NOTHING}\n")
    run(capsys, write(there), "--on-hub", "--schedule", "@daily")
    for job in (shelf.hub.jobs[0], shelf.hub.schedules[0]):
        (read,) = read_catalog(job.spec["environment"]["MOPEQ_CATALOG"])
        assert isinstance(read, Entry)
        assert (read.budgets, read.recipe.bits) == (BUDGETS, (2, 4))
