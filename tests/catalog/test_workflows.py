"""The workflows and the action: what they may do, and that their steps, run as bash, do it."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mopeq_hub.recipe import Recipe
from tests.catalog.conftest import MODEL, MODEL_FILES, TO
from tests.catalog.runner import Runner, load
from tests.github_server import GitHub
from tests.hub import HubServer, client_environment

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
ACTION = ROOT / ".github" / "actions" / "publish" / "action.yml"
EVERYTHING = [*WORKFLOWS, ACTION]


def steps_of(path: Path) -> list[dict[str, Any]]:
    content = load(path)
    jobs = content.get("jobs", {"": {"steps": content.get("runs", {}).get("steps")}})
    return [step for job in jobs.values() for step in job["steps"]]


@pytest.fixture
def github() -> Iterator[GitHub]:
    with GitHub() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """This project as a runner has it, with a catalog of its own."""
    workspace = tmp_path / "workspace"
    for name in ("mopeq_hub", "templates", "spaces", ".ci", ".github"):
        ignored = shutil.ignore_patterns("__pycache__", "node_modules")
        shutil.copytree(ROOT / name, workspace / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE", ".gitignore"):
        shutil.copyfile(ROOT / name, workspace / name)
    return workspace


@pytest.fixture
def runner(hub: HubServer, github: GitHub, checkout: Path, tmp_path: Path) -> Runner:
    """A machine whose Hub and whose GitHub are here, on which mopeq-hub is installed already."""
    home = Path(os.environ["MOPEQ_HOME"])
    programs = tmp_path / "temp" / "mopeq-hub" / "venv" / "bin"
    programs.mkdir(parents=True)
    for name, module in (("mopeq-hub", "-m mopeq_hub.cli "), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {module}"$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **client_environment(hub, tmp_path / "home"),
        "MOPEQ_HOME": str(home),
        "PYTHONPATH": str(ROOT),
        "GITHUB_REPOSITORY": "me/repo",
        "GITHUB_RUN_ID": "7",
        "GITHUB_API_URL": github.url,
    }
    secrets = {"HF_TOKEN": os.environ["HF_TOKEN"]}
    contexts = {"secrets": secrets, "github": {"token": github.token}, "runner": {"temp": str(tmp_path / "temp")}}
    return Runner(checkout, tmp_path / "temp", environment, contexts)


# What they may do


def test_there_are_the_three_workflows_and_the_action() -> None:
    assert [path.name for path in WORKFLOWS] == ["ci.yml", "publish.yml", "republish.yml"]
    assert load(ACTION)["runs"]["using"] == "composite"


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: path.stem)
def test_actions_of_others_are_pinned_by_commit_with_their_version_beside(path: Path) -> None:
    used = re.findall(r"uses: (.*)", path.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+|\./\.github/actions/publish", action)


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: path.stem)
def test_no_expression_is_put_into_a_script(path: Path) -> None:
    assert not [step["run"] for step in steps_of(path) if "${{" in step.get("run", "")]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_and_no_more(path: Path) -> None:
    content = load(path)
    assert content["permissions"] == {"contents": "read"}
    more = {name: job["permissions"] for name, job in content["jobs"].items() if "permissions" in job}
    makes = {"contents": "read", "id-token": "write"}
    expected = {
        "publish": {"publish": makes},
        "republish": {"republish": makes, "report": {"contents": "read", "issues": "write"}},
    }
    assert more == expected.get(path.stem, {})
    for step in steps_of(path):
        if step.get("uses", "").startswith("actions/checkout"):
            assert step["with"] == {"persist-credentials": False}


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: path.stem)
def test_a_token_is_only_where_it_is_needed(path: Path) -> None:
    content, secret = load(path), re.compile(r"secrets\.|github\.token|inputs\.token")
    around = {key: value for key, value in content.items() if key not in ("jobs", "runs")}
    around |= {f"job {name}": {**job, "steps": None} for name, job in content.get("jobs", {}).items()}
    assert not secret.search(json.dumps(around))
    for step in steps_of(path):
        speaks = re.search(r"^\s*mopeq-hub (plan|publish|republish)", step.get("run", ""), re.MULTILINE)
        if not speaks and not step.get("uses", "").startswith("./"):
            assert not secret.search(json.dumps(step)), step


def test_two_runs_never_publish_to_the_same_destination() -> None:
    one, many = (load(ROOT / ".github" / "workflows" / f"{name}.yml") for name in ("publish", "republish"))
    groups = one["concurrency"], many["jobs"]["republish"]["concurrency"]
    assert [re.sub(r"\{\{.*\}\}", "{{}}", group["group"]) for group in groups] == ["mopeq-publish-${{}}"] * 2
    assert [group["cancel-in-progress"] for group in (*groups, many["concurrency"])] == [False] * 3


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_action_is_given_what_it_takes(path: Path) -> None:
    inputs = set(load(ACTION)["inputs"])
    for step in steps_of(path):
        if step.get("uses", "").startswith("./"):
            assert set(step.get("with", {})) <= inputs


def test_the_machine_can_be_chosen() -> None:
    for name in ("publish", "republish"):
        content = load(ROOT / ".github" / "workflows" / f"{name}.yml")
        assert content["on"]["workflow_dispatch"]["inputs"]["runner"]["default"] == "ubuntu-latest"
        assert "inputs.runner" in content["jobs"][name]["runs-on"]


# What they do


def test_a_schedule_republishes_just_what_moved_and_then_nothing(
    hub: HubServer, put: Callable[..., None], runner: Runner, github: GitHub
) -> None:
    hub.add_repo("alice/moving", MODEL_FILES)
    put("alice/one-MoPEQ")
    put("alice/two-MoPEQ", recipe=Recipe(bits=(3,)))
    questions = [json.dumps({"image": None, "question": f"What is {n}?", "answer": "a number"}) for n in range(4)]
    (runner.workspace / "questions.jsonl").write_text("\n".join(questions))
    (runner.workspace / "catalog.yaml").write_text(
        "- {model: alice/shapes, to: alice/one-MoPEQ, recipe: mopeq, space: false}\n"
        "- {model: alice/moving, to: alice/two-MoPEQ, recipe: {bits: [3]}, questions: questions.jsonl, space: false}\n"
    )

    def scheduled(**inputs: str) -> tuple[list[dict[str, str]], list[Any]]:
        """A run of the whole workflow: what was stale, and the jobs that ran."""
        find = runner.job("republish.yml", "find", inputs=inputs)
        assert find.success, find.log
        needs = {"find": {"outputs": find.outputs}}
        stale = json.loads(find.outputs["matrix"])["include"]
        assert runner.wanted("republish.yml", "republish", needs=needs) is bool(stale)
        made = [runner.job("republish.yml", "republish", inputs=inputs, needs=needs, matrix=entry) for entry in stale]
        assert runner.wanted("republish.yml", "report")
        return stale, [find, *made, runner.job("republish.yml", "report", inputs=inputs, needs=needs)]

    stale, _ = scheduled()
    assert stale == []
    assert github.issues == []

    commit = hub.commit("alice/moving", {"README.md": b"moved"})
    heads = [hub.head(f"alice/{name}-MoPEQ") for name in ("one", "two")]
    stale, (find, made, report) = scheduled(parallel="2")
    assert stale == [{"to": "alice/two-MoPEQ", "model": "alice/moving"}]
    assert made.success, made.log
    assert report.success, report.log
    assert "republished alice/two-MoPEQ: the source's commit moved from" in made.log
    assert hub.head("alice/one-MoPEQ") == heads[0]
    assert hub.head("alice/two-MoPEQ") != heads[1]
    manifest = json.loads(hub.files("alice/two-MoPEQ")["mopeq.json"])
    assert manifest["source"]["commit"] == commit
    assert manifest["recipe"]["bits"] == [3]
    assert "| stale | the source's commit moved" in find.summary
    assert "### `alice/moving` published" in made.summary
    assert "(https://huggingface.co/alice/two-MoPEQ/resolve/main/plots/bits.png)" in made.summary
    assert github.issues == []

    heads = [hub.head(f"alice/{name}-MoPEQ") for name in ("one", "two")]
    assert scheduled()[0] == []
    assert heads == [hub.head(f"alice/{name}-MoPEQ") for name in ("one", "two")]


def test_what_cannot_be_done_is_in_one_issue_and_does_not_keep_the_others(
    hub: HubServer, put: Callable[..., None], runner: Runner, github: GitHub
) -> None:
    put(TO)
    catalog = "".join(
        f"- {{model: {model}, to: {to}, recipe: mopeq}}\n"
        for model, to in ((MODEL, TO), ("alice/gone", "alice/x"), (MODEL, "alice/y"))
    )
    (runner.workspace / "mine.yaml").write_text(catalog)
    find = runner.job("republish.yml", "find", inputs={"catalog": "mine.yaml"})
    assert find.success, find.log
    assert json.loads(find.outputs["matrix"]) == {"include": [{"to": "alice/y", "model": MODEL}]}
    report = runner.job("republish.yml", "report", inputs={"catalog": "mine.yaml"})
    assert not report.success
    assert "error: entry 2, to alice/x: alice/gone does not exist" in report.log
    (issue,) = github.issues
    assert "2 of 3 publications are stale or failed" in issue["body"]
    for token in (github.token, runner.contexts["secrets"]["HF_TOKEN"]):
        assert token not in find.log + report.log + json.dumps(github.issues)


def test_publishing_on_demand_checks_the_machine_and_publishes(
    hub: HubServer, put: Callable[..., None], runner: Runner
) -> None:
    put(TO)
    head = hub.head(TO)
    inputs = {"model": MODEL, "destination": TO, "recipe": "mopeq", "space": True, "engine": "local"}
    job = runner.job("publish.yml", "publish", inputs=inputs)
    assert job.success, job.log
    assert job.steps == ["Find a place", "Install mopeq-hub", "Check disk and memory", "Publish"]
    assert "of disk" in job.log
    assert hub.head(TO) == head, "it held this very publication"
    assert "app.py" in hub.files(TO, repo_type="space"), "its Space was missing"
    logs = runner.temp / "mopeq-hub" / "logs"
    assert json.loads((logs / "plan.json").read_text())["needs"]["disk"] > 0
    assert runner.contexts["secrets"]["HF_TOKEN"] not in job.log + (logs / "publish.log").read_text()


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"model": "--help", "recipe": ""}, "'--help' is neither a folder that exists nor owner/name"),
        ({"model": "$(touch pwned)", "recipe": "`touch pwned`"}, "the recipe is not YAML in line 1"),
    ],
)
def test_inputs_are_text_and_never_run(inputs: dict[str, str], words: str, runner: Runner) -> None:
    job = runner.job("publish.yml", "publish", inputs={**inputs, "destination": TO, "engine": "local"})
    assert not job.success
    assert words in job.log
    assert "Publish" not in job.steps
    assert not (runner.workspace / "pwned").exists()


def test_the_action_installs_what_is_checked_out(checkout: Path, runner: Runner, tmp_path: Path) -> None:
    shutil.rmtree(runner.temp)
    # What it depends on is there already; nothing is downloaded, and no other mopeq-hub can be taken for it.
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(r"_?_?(mopeq|editable)", path.name):
            (libraries / path.name).symlink_to(path)
    runner.environment = {
        **runner.environment,
        "PYTHONPATH": str(libraries),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{runner.environment['PATH']}",
    }
    job = runner.job("republish.yml", "find", inputs={})
    venv = runner.temp / "mopeq-hub" / "venv"
    where = [str(venv / "bin" / "python"), "-c", "import mopeq_hub; print(mopeq_hub.__file__)"]
    environment = {**os.environ, "PYTHONPATH": str(libraries)}
    assert (venv / "bin" / "mopeq-hub").exists(), job.log
    found = subprocess.run(where, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert found.startswith(str(venv))
    assert job.steps == ["Find a place", "Install mopeq-hub", "Look for what is stale"]
