"""Several budgets of one model: a branch each, main the recommended one, and nothing done twice."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, snapshot_download

from mopeq_hub import MopeqError, Recipe, cli, pipeline, publish_variants, variants
from mopeq_hub.check import check
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import UsageError
from mopeq_hub.fidelity.variants import recommended
from mopeq_hub.manifest import publication_name, read_fidelity, read_manifest
from mopeq_hub.model import open_model
from mopeq_hub.profiles import profile_of
from mopeq_hub.progress import Quiet
from mopeq_hub.questions import read_questions
from mopeq_hub.selection import select, settled
from mopeq_hub.sensitivity.given import Given
from mopeq_hub.variants import Variants
from tests.conftest import edit_json
from tests.families.test_published_form import PLAIN_LOAD
from tests.hub import HubServer, client_environment
from tests.shelf import BUDGETS, RECIPE, REPO, Shelf, Stages, shelf_of, warm


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory, filled: Path) -> Iterator[Shelf]:
    """Nothing is changed on it."""
    with shelf_of(filled, tmp_path_factory.mktemp("shelf")) as shelf:
        yield shelf


@pytest.fixture
def alice(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("HF_TOKEN", hub.token("alice"))
    return hub


@pytest.fixture
def copied(tmp_path: Path, filled: Path) -> Iterator[Shelf]:
    """The same for a test that changes it."""
    with shelf_of(filled, tmp_path) as shelf:
        yield shelf


@pytest.fixture
def few_questions(filled: Path) -> Iterator[Path]:
    """Those of the shelf, on which the original's logits are known."""
    with warm(filled):
        yield filled / "questions.jsonl"


def name_of(shapes: Path, recipe: Recipe) -> str:
    return publication_name(recipe, open_model(str(shapes)).source.commit)


def test_each_budget_is_a_branch_with_a_publication_of_its_own(shelf: Shelf, shapes: Path) -> None:
    assert set(shelf.hub.branches(REPO)) == {"main", *BUDGETS}
    for budget in BUDGETS:
        manifest = json.loads(shelf.hub.files(REPO, budget)["mopeq.json"])
        assert manifest["publication"] == name_of(shapes, Recipe((2, 4), allocator="knapsack", budget=budget))
        assert manifest["sizes"]["experts_bpw"] <= float(budget.removesuffix("bpw"))
        assert [finding.trouble for finding in check(f"{REPO}@{budget}")] == [None] * 8
        card = shelf.hub.files(REPO, budget)["README.md"].decode()
        assert f'from_pretrained("{REPO}", revision="{budget}", ' in card
        assert f"variant `{budget}`; [main](https://huggingface.co/{REPO}) compares all of them" in card


def test_main_holds_the_recommended_one_and_compares_them_all(shelf: Shelf) -> None:
    files = shelf.hub.files(REPO)
    fidelity = json.loads(files["fidelity.json"])
    assert [each["name"] for each in fidelity["variants"]] == list(BUDGETS), "the smallest first"
    chosen = recommended(fidelity["variants"])
    assert fidelity["publication"] == chosen["publication"] == shelf.made.main.name
    there = shelf.hub.files(REPO, chosen["name"])
    assert {name for name in files if files[name] != there[name]} == {
        "README.md",
        "fidelity.json",
        "plots/size_fidelity.png",
    }
    card = files["README.md"].decode()
    for budget in BUDGETS:
        assert f"[`{budget}`](https://huggingface.co/{REPO}/tree/{budget})" in card
    assert [finding.trouble for finding in check(REPO, load=False)] == [None] * 7


def test_the_tags_are_of_the_branches_and_of_main_where_it_holds_the_same(shelf: Shelf) -> None:
    tags = shelf.hub.tags(REPO)
    for budget, publication in shelf.made.publications.items():
        of_main = publication.name == shelf.made.main.name
        assert tags[publication.name] == shelf.hub.head(REPO, "main" if of_main else budget)


def test_one_space_shows_what_is_in_main(shelf: Shelf) -> None:
    said = json.loads(shelf.hub.files(REPO, repo_type="space")["publication.json"])
    assert (said["model"], said["revision"]) == (REPO, shelf.made.main.name)
    assert "spaces/" in shelf.hub.files(REPO)["README.md"].decode()
    assert "spaces/" not in shelf.hub.files(REPO, BUDGETS[-1])["README.md"].decode()


def test_the_original_and_what_all_are_compared_with_are_measured_once(shelf: Shelf) -> None:
    fidelities = [json.loads(shelf.hub.files(REPO, budget)["fidelity.json"]) for budget in BUDGETS]
    compared = [each["name"] for each in fidelities[0]["comparisons"]]
    assert {"uniform 2 bits", "uniform 4 bits"} <= set(compared)
    assert fidelities[0]["comparisons"] == fidelities[1]["comparisons"]
    assert shelf.stages.count("measure original") == 1
    assert shelf.stages.count("measure published") == len(BUDGETS) + len(compared)
    assert shelf.stages.count("measure") == 1, "one profile"


def test_main_brings_no_weights_of_its_own(shelf: Shelf) -> None:
    sent = {
        entry.sha256: entry.size
        for revision in ("main", *BUDGETS)
        for name, entry in shelf.hub.entries(REPO, revision).items()
        if entry.is_lfs
    }
    assert sum(sent.values()) <= shelf.hub.traffic(REPO).uploaded < sum(sent.values()) + 1_500_000


def test_a_variant_is_downloaded_and_loaded_by_the_name_of_its_branch(shelf: Shelf, tmp_path: Path) -> None:
    folder = Path(snapshot_download(REPO, revision="3.5bpw", cache_dir=tmp_path / "cache", endpoint=shelf.hub.endpoint))
    assert read_manifest(folder)["recipe"]["budget"] == "3.5bpw"
    inputs, output = tmp_path / "inputs.pt", tmp_path / "output.pt"
    torch.save({"input_ids": torch.tensor([[1, 2, 3]])}, inputs)
    environment = client_environment(shelf.hub, tmp_path / "home")
    by_name = f"{REPO}@3.5bpw"
    subprocess.run([sys.executable, PLAIN_LOAD, inputs, output, by_name, folder], env=environment, check=True)
    named, local = torch.load(output)
    assert named["trouble"] == local["trouble"]
    assert torch.equal(named["logits"], local["logits"])


def test_the_same_again_changes_nothing_and_says_so(
    shelf: Shelf, shapes: Path, few_questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shelf.hub.branches(REPO), shelf.hub.tags(REPO), shelf.hub.head(REPO, repo_type="space")
    command = ["publish", str(shapes), "--to", REPO, "--questions", str(few_questions), "--bits", "2,4"]
    command += ["--signal", "hessian"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--budget", ",".join(BUDGETS)])
    printed = capsys.readouterr()
    assert ended.value.code in (0, None), printed.err
    assert printed.out.count("nothing to do") == len(BUDGETS) + 1
    assert (shelf.hub.branches(REPO), shelf.hub.tags(REPO), shelf.hub.head(REPO, repo_type="space")) == before


def test_a_run_that_was_stopped_goes_on_and_main_comes_last(copied: Shelf, shapes: Path) -> None:
    def run() -> Variants:
        return publish_variants(str(shapes), REPO, RECIPE, BUDGETS, questions=copied.questions, compare=True)

    hub, first = copied.hub, copied.hub.head(REPO, BUDGETS[0])
    HfApi().delete_branch(REPO, branch=BUDGETS[1])
    hub.commit(REPO, dict.fromkeys(set(hub.files(REPO)) - {".gitattributes"}))
    hub.fail_next(rf"/commit/{BUDGETS[1]}", status=403, times=5)
    with pytest.raises(MopeqError, match="refused"):
        run()
    assert set(hub.branches(REPO)) == {"main", BUDGETS[0]}, "no branch without a publication"
    assert set(hub.files(REPO)) == {".gitattributes"}
    hub.clear_faults()
    hub.fail_next("/commit/main", status=403, times=5)
    with pytest.raises(MopeqError, match="refused"):
        run()
    assert set(hub.files(REPO)) == {".gitattributes"}
    hub.clear_faults()
    made = run()
    assert [each.changed for each in made.publications.values()] == [False, False]
    assert made.main.changed
    assert made.main.commit == hub.head(REPO)
    assert hub.head(REPO, BUDGETS[0]) == first


def test_maps_of_all_budgets_are_tried_at_one_go_and_once(
    shapes: Path, few_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOPEQ_HOME", str(tmp_path / "mopeq-home"))
    stages, recipe = Stages(), replace(RECIPE, signal="distortion", allocator="measured", budget=BUDGETS[0])

    def publish(*args: object, **options: object) -> None:
        raise MopeqError("it is being published")

    monkeypatch.setattr(variants, "publish", publish)
    with pytest.raises(MopeqError, match="it is being published"):
        publish_variants(str(shapes), str(tmp_path / "out"), recipe, BUDGETS, questions=few_questions, progress=stages)
    assert stages.names.count("try") == 1

    def run(*args: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr("mopeq_hub.fidelity.trials.run_module", run)
    model, asked = open_model(str(shapes)), read_questions(few_questions)
    for budget in BUDGETS:
        one = settled(replace(recipe, budget=budget), model, asked)
        taken = select(model, one, profile_of(model, one, Quiet()), Given(questions=asked), Quiet(), LOCAL)
        assert taken.document is not None
        tried = {each["name"]: each["kl"] for each in taken.document["tried"]}
        assert {"distortion, by expert", "uniform 2 bits", "MoPEQ's map"} < set(tried)


def test_a_branch_is_a_destination_like_any_other(alice: HubServer, publication: Path) -> None:
    main = alice.add_repo(REPO, {"notes.txt": b"mine"})
    alice.fail_next("/commit/", status=403, times=5)
    with pytest.raises(MopeqError, match="refused"):
        pipeline.push(publication, f"{REPO}@mine")
    assert alice.branches(REPO) == {"main": main}, "no branch without a publication"
    alice.clear_faults()
    assert pipeline.push(publication, f"{REPO}@mine").changed
    assert not pipeline.push(publication, f"{REPO}@mine").changed
    assert alice.head(REPO) == main
    assert not alice.has_repo(REPO, repo_type="space"), "a Space is of main"
    with pytest.raises(UsageError, match="a Space is of main"):
        pipeline.publish_space(f"{REPO}@mine")
    with pytest.raises(MopeqError, match="no such revision"):
        check(f"{REPO}@other")


def test_what_lies_in_main_and_is_no_publication_is_not_lost(alice: HubServer, shapes: Path) -> None:
    before = alice.add_repo(REPO, {"weights.bin": b"precious"})
    with pytest.raises(MopeqError, match="not a publication"):
        publish_variants(str(shapes), REPO, None, BUDGETS)
    assert alice.branches(REPO) == {"main": before}


def test_budgets_that_cannot_be_met_are_all_named_before_anything_is_done(
    alice: HubServer, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOPEQ_HOME", str(tmp_path / "mopeq-home"))
    alice.add_repo("alice/shapes", shapes)
    with pytest.raises(MopeqError, match=r"1\.0bpw is too small .* 1\.5bpw is too small .* the smallest is 2\.2"):
        publish_variants("alice/shapes", REPO, None, ("3.0bpw", "1.0bpw", "1.5bpw"))
    assert not alice.has_repo(REPO)
    assert alice.traffic("alice/shapes").downloaded < 1_000_000, "headers, no weights"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("publish", "--budget", "2.5bpw,2.50bpw"), "names one budget twice"),
        (("publish", "--budget", "2.5bpw,,3bpw"), "not all sizes; write them as 2.5bpw,3.0bpw"),
        (("publish", "--budget", "2.5bpw,3 bits"), "'3 bits' is not a size"),
        (("publish", "--budget", "2.5bpw,3bpw", "--to", "alice/repo@branch"), "is a branch"),
        (("publish", "--budget", "2.5bpw,3bpw", "--allocator", "kmeans"), "knows no --budget"),
        (("quantize", "DIR", "--budget", "2.5bpw,3bpw"), "quantize takes one --budget; `publish` and `plan` take"),
        (("quantize", "DIR", "--recipe", "{budget: [2.5bpw, 3bpw]}"), "quantize takes one --budget"),
    ],
)
def test_a_list_that_is_none_is_an_error_in_one_line(
    command: tuple[str, ...], words: str, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *rest = (str(tmp_path / "dir") if word == "DIR" else word for word in command)
    if verb == "publish" and "--to" not in rest:
        rest += ["--to", str(tmp_path / "target")]
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, str(shapes), *rest])
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert words in printed
    assert printed.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_lie_beside_each_other_and_share_what_main_takes_over(
    shapes: Path, few_questions: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out" / "shapes"

    def run() -> Variants:
        return publish_variants(str(shapes), f"{target}/", RECIPE, BUDGETS, questions=few_questions, compare=False)

    made = run()
    assert {path.name for path in target.parent.iterdir()} == {
        "shapes",
        "shapes-space",
        *(f"shapes@{budget}" for budget in BUDGETS),
    }
    compared = (read_fidelity(target) or {})["variants"]
    chosen = target.with_name(f"shapes@{recommended(compared)['name']}")
    weights = "model-00001-of-00003.safetensors"
    assert (target / weights).samefile(chosen / weights), "on the disk once"
    assert not (target / "config.json").samefile(chosen / "config.json"), "whoever edits one does not edit the other"
    for folder in (target, chosen):
        assert [finding.trouble for finding in check(str(folder), load=False)] == [None] * 7
    assert f"[`{BUDGETS[0]}`](../shapes%40{BUDGETS[0]}/README.md)" in (target / "README.md").read_text()
    assert "[main](../shapes/README.md)" in (chosen / "README.md").read_text()
    assert made.main.changed
    assert not run().main.changed
    other = target.with_name(f"shapes@{BUDGETS[1]}")
    edit_json(other / "fidelity.json", lambda fidelity: fidelity["inputs"].update(sha256="0" * 64))
    again = run()
    assert [each.changed for each in again.publications.values()] == [False, True], "measured on the same questions"
    assert read_fidelity(other) == again.publications[BUDGETS[1]].fidelity
    assert not again.main.changed


def test_a_dry_run_leaves_nothing(shelf: Shelf, shapes: Path, few_questions: Path) -> None:
    before, budgets = shelf.hub.branches(REPO), ("4.0bpw", *BUDGETS)
    made = publish_variants(str(shapes), REPO, RECIPE, budgets, questions=few_questions, compare=False, dry_run=True)
    assert [each["name"] for each in (made.main.fidelity or {})["variants"]] == [*BUDGETS, "4.0bpw"]
    assert [each.changed for each in made.publications.values()] == [True, False, False], "two are there already"
    assert (made.main.changed, made.main.commit) == (True, None), "its table would be another"
    assert shelf.hub.branches(REPO) == before


def test_each_variant_passes_through_and_is_signed(
    alice: HubServer, shapes: Path, few_questions: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    alice.add_repo("alice/shapes", shapes)
    publish_variants(
        "alice/shapes", REPO, None, BUDGETS, questions=few_questions, stream=True, sign=str(keys[0]), space=False
    )
    for place in (REPO, *(f"{REPO}@{budget}" for budget in BUDGETS)):
        with pytest.raises(SystemExit) as ended:
            cli.main(["check", place, "--no-load", "--key", str(keys[1])])
        assert ended.value.code in (0, None), capsys.readouterr().out
    assert HfApi().model_info(REPO, revision=BUDGETS[0]).sha == alice.head(REPO, BUDGETS[0])


def test_plan_has_a_row_for_each_budget(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ((), ("--json",)):
        with pytest.raises(SystemExit):
            cli.main(["plan", str(shapes), "--signal", "hessian", "--budget", ",".join(BUDGETS), *options])
    text, document = capsys.readouterr().out.split("{", 1)
    assert [line.split()[1] for line in text.splitlines() if "bpw" in line and "MB" in line] == list(BUDGETS)
    planned = json.loads("{" + document)
    recipes = {name: each["manifest"]["recipe"] for name, each in planned["variants"].items()}
    assert {name: recipe["budget"] for name, recipe in recipes.items()} == {budget: budget for budget in BUDGETS}
    assert planned["needs"]["disk"] > 0, "what a workflow asks before it begins"


@pytest.mark.parametrize("budget", ["2.5bpw", "12GB", "500MB", "0.25x", "123456789.123456789bpw"])
def test_a_budget_is_a_name_that_a_branch_can_have(budget: str, alice: HubServer) -> None:
    Recipe(allocator="knapsack", budget=budget)
    alice.add_repo(REPO)
    HfApi().create_branch(REPO, branch=budget)
    assert subprocess.run(["git", "check-ref-format", "--branch", budget], check=False).returncode == 0


def test_a_list_for_a_branch_is_refused_before_it_is_looked_at(shapes: Path) -> None:
    with pytest.raises(UsageError, match="name the repo alone"):
        publish_variants(str(shapes), f"{REPO}@mine", None, BUDGETS)
