"""A publication of one budget where main compares several: nothing that is there is lost, and nothing goes unsaid."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from mopeq_hub import MopeqError, cli, pipeline
from mopeq_hub.delivery import compared_at
from mopeq_hub.hub import FolderDestination
from mopeq_hub.manifest import FIDELITY_NAME, weights_digest, write_json
from mopeq_hub.repo import QuantizedRepo
from tests.report.documents import fidelity
from tests.shelf import BUDGETS, RECIPE, REPO, Shelf, Stages, shelf_of


@pytest.fixture
def shelf(tmp_path: Path, filled: Path) -> Iterator[Shelf]:
    with shelf_of(filled, tmp_path) as shelf:
        yield shelf


def publish_one(shapes: Path, shelf: Shelf, budget: str, **options: Any) -> pipeline.Publication:
    recipe = replace(RECIPE, allocator="knapsack", budget=budget)
    return pipeline.publish(str(shapes), REPO, recipe, questions=shelf.questions, **options)


@pytest.mark.parametrize("budget", BUDGETS)
def test_one_of_the_list_is_there_already_which_is_said_with_the_list(
    budget: str, shelf: Shelf, shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shelf.hub.branches(REPO), shelf.hub.tags(REPO), shelf.hub.head(REPO, repo_type="space")
    command = ["publish", str(shapes), "--to", REPO, "--questions", str(shelf.questions), "--bits", "2,4"]
    with pytest.raises(SystemExit):
        cli.main([*command, "--signal", "hessian", "--budget", budget])
    publication = shelf.made.publications[budget].name
    where = REPO if publication == shelf.made.main.name else f"{REPO}@{budget}"
    assert capsys.readouterr().out == (
        f"{where} already holds {publication}: nothing to do\n{REPO} compares it with others: {', '.join(BUDGETS)}\n"
    )
    assert (shelf.hub.branches(REPO), shelf.hub.tags(REPO), shelf.hub.head(REPO, repo_type="space")) == before


def test_one_of_the_list_whose_branch_is_gone_goes_there_again(
    shelf: Shelf, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (other,) = (name for name, each in shelf.made.publications.items() if each.name != shelf.made.main.name)
    HfApi().delete_branch(REPO, branch=other)

    def made_up(model: Any, repo: QuantizedRepo, *rest: Any) -> dict[str, Any]:
        proof = {**fidelity(repo.manifest), "weights_digest": weights_digest(repo.manifest)}
        write_json(repo.folder / FIDELITY_NAME, proof, "fidelity")
        return proof

    monkeypatch.setattr(pipeline, "prove", made_up)
    before = shelf.hub.head(REPO), shelf.hub.head(REPO, repo_type="space")
    made = publish_one(shapes, shelf, other)
    assert (made.destination, made.commit) == (f"{REPO}@{other}", shelf.hub.head(REPO, other))
    assert (shelf.hub.head(REPO), shelf.hub.head(REPO, repo_type="space")) == before
    assert f'revision="{other}"' in shelf.hub.files(REPO, other)["README.md"].decode()


def test_what_takes_the_place_of_a_comparison_says_so_and_leaves_the_branches(
    shelf: Shelf, shapes: Path, publication: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warning = f"{REPO} compares {', '.join(BUDGETS)}; it will hold this publication alone, and they stay where they are"
    told, branches = Stages(), shelf.hub.branches(REPO)

    def build(*args: Any, **options: Any) -> None:
        raise MopeqError("it is being built")

    monkeypatch.setattr(pipeline, "build", build)
    with pytest.raises(MopeqError, match="it is being built"):
        publish_one(shapes, shelf, "3.0bpw", progress=told)
    assert told.said[1:] == [warning]
    assert shelf.hub.branches(REPO) == branches
    told = Stages()
    assert pipeline.push(publication, REPO, progress=told).note == warning
    assert told.said == [warning]
    assert shelf.hub.branches(REPO) == {**branches, "main": shelf.hub.head(REPO)}
    assert "Variants" not in shelf.hub.files(REPO)["README.md"].decode()
    told = Stages()
    assert pipeline.push(publication, REPO, progress=told).note is None
    assert told.said == []


@pytest.mark.parametrize(
    "written", [b"\xff", b"[]", b"{}", b'{"variants": 3}', b'{"variants": [3, {"name": [], "publication": "x"}]}']
)
def test_a_fidelity_that_is_in_no_order_compares_nothing(written: bytes, tmp_path: Path) -> None:
    (tmp_path / FIDELITY_NAME).write_bytes(written)
    assert compared_at(FolderDestination(str(tmp_path))) == {}
    assert compared_at(FolderDestination(str(tmp_path / "missing"))) == {}
