"""Runs the jobs of a workflow as GitHub's runner would: the `run:` steps as bash, in order, with the inputs, the
environment and the files for outputs that a runner gives. Actions of this project run step by step; others are left
out, since they are GitHub's to test.
"""

import json
import os
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_EXPRESSION = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_TOKEN = re.compile(r"\s*('(?:[^']|'')*'|\|\||&&|==|!=|[(),]|[\w.-]+)")
_SHELL = ["bash", "--noprofile", "--norc", "-eo", "pipefail"]


def load(path: Path) -> dict[str, Any]:
    """A workflow or an action; YAML takes its key `on` for a boolean."""
    content = yaml.safe_load(path.read_text("utf-8"))
    return {"on" if key is True else key: value for key, value in content.items()}


@dataclass
class Job:
    """What came of a job: whether each step went well, its outputs, and all that was printed."""

    success: bool = True
    outputs: dict[str, str] = field(default_factory=dict)
    log: str = ""
    steps: list[str] = field(default_factory=list)
    summary: str = ""


@dataclass
class Runner:
    """One machine. workspace: a checkout. temp: RUNNER_TEMP. environment: of every step, without any secret."""

    workspace: Path
    temp: Path
    environment: Mapping[str, str]
    contexts: dict[str, Any]

    def job(self, workflow: str, name: str, **contexts: Any) -> Job:
        """Run one job; `contexts` are what only this run has: inputs, needs, matrix."""
        described = load(self.workspace / ".github" / "workflows" / workflow)
        job, known = described["jobs"][name], {"strategy": {"job-index": 0}, **self.contexts, **contexts, "steps": {}}
        self.temp.mkdir(parents=True, exist_ok=True)
        own = {key: str(value) for key, value in described.get("env", {}).items()}
        told, environment = Job(), {**self.environment, **own}
        known["env"] = own
        self._steps(job["steps"], known, environment, told)
        told.outputs = {key: text(value, known) for key, value in job.get("outputs", {}).items()}
        return told

    def wanted(self, workflow: str, name: str, **contexts: Any) -> bool:
        """Whether the job's own condition lets it run."""
        condition = load(self.workspace / ".github" / "workflows" / workflow)["jobs"][name].get("if")
        return condition is None or bool(evaluate(condition, {**self.contexts, **contexts}, Job()))

    def _steps(
        self, steps: list[dict[str, Any]], known: dict[str, Any], environment: dict[str, str], told: Job
    ) -> None:
        for step in steps:
            condition = str(step.get("if", "success()"))
            if not re.search(r"\b(success|failure|always)\(", condition):
                condition = f"success() && {condition}"
            if not evaluate(condition, known, told):
                continue
            own = {key: text(value, known) for key, value in step.get("env", {}).items()}
            if "run" in step:
                self._run(step, known, environment, own, told)
            elif step["uses"].startswith("./"):
                self._action(step, known, environment, told)

    def _action(self, step: dict[str, Any], known: dict[str, Any], environment: dict[str, str], told: Job) -> None:
        folder = self.workspace / step["uses"]
        action = load(folder / "action.yml")
        given = {key: text(value, known) for key, value in step.get("with", {}).items()}
        inputs = {name: str(described.get("default", "")) for name, described in action["inputs"].items()} | given
        # A composite action sees neither the workflow's secrets nor its inputs.
        inner = {**known, "inputs": inputs, "steps": {}, "secrets": {}, "needs": {}}
        environment["GITHUB_ACTION_PATH"] = str(folder)
        self._steps(action["runs"]["steps"], inner, environment, told)
        if "id" in step:
            outputs = {name: text(described["value"], inner) for name, described in action["outputs"].items()}
            known["steps"][step["id"]] = {"outputs": outputs}

    def _run(
        self, step: dict[str, Any], known: dict[str, Any], environment: dict[str, str], own: dict[str, str], told: Job
    ) -> None:
        files = {name: self.temp / f"_{name}" for name in ("ENV", "PATH", "OUTPUT", "STEP_SUMMARY")}
        for path in files.values():
            path.write_text("")
        script = self.temp / "_script.sh"
        script.write_text(step["run"])
        own |= {f"GITHUB_{name}": str(path) for name, path in files.items()} | {"RUNNER_TEMP": str(self.temp)}
        ended = subprocess.run(
            [*_SHELL, str(script)], cwd=self.workspace, env={**environment, **own},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300,
        )  # fmt: skip
        told.log += ended.stdout
        told.steps.append(step.get("name", "run"))
        told.success = told.success and ended.returncode == 0
        told.summary += files["STEP_SUMMARY"].read_text()
        environment.update(_pairs(files["ENV"]))
        environment["PATH"] = os.pathsep.join([*files["PATH"].read_text().splitlines(), environment["PATH"]])
        if "id" in step:
            known["steps"][step["id"]] = {"outputs": _pairs(files["OUTPUT"])}


def _pairs(path: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in path.read_text().splitlines())


def text(value: Any, known: Mapping[str, Any]) -> str:
    """A value of a workflow with its expressions replaced."""
    written = str(value).lower() if isinstance(value, bool) else str(value)
    return _EXPRESSION.sub(lambda found: _as_text(evaluate(found[1], known, Job())), written)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def evaluate(expression: str, known: Mapping[str, Any], told: Job) -> Any:
    """An expression of GitHub's, as far as these workflows use them: values, text, ==, !=, &&, || and functions."""
    expression = expression.strip().removeprefix("${{").removesuffix("}}").strip()
    words = _TOKEN.findall(expression)
    assert "".join(words) == re.sub(r"\s+(?=(?:[^']*'[^']*')*[^']*$)", "", expression), expression
    value = _either(words, known, told)
    assert not words, f"{expression}: what is {words[0]}?"
    return value


def _either(words: list[str], known: Mapping[str, Any], told: Job) -> Any:
    value = _both(words, known, told)
    while words[:1] == ["||"]:
        words.pop(0)
        other = _both(words, known, told)
        value = value or other
    return value


def _both(words: list[str], known: Mapping[str, Any], told: Job) -> Any:
    value = _compared(words, known, told)
    while words[:1] == ["&&"]:
        words.pop(0)
        other = _compared(words, known, told)
        value = value and other
    return value


def _compared(words: list[str], known: Mapping[str, Any], told: Job) -> Any:
    value = _value(words, known, told)
    if words[:1] in (["=="], ["!="]):
        equal = words.pop(0) == "=="
        return (_as_text(value) == _as_text(_value(words, known, told))) is equal
    return value


def _value(words: list[str], known: Mapping[str, Any], told: Job) -> Any:
    word = words.pop(0)
    if word.startswith("'"):
        return word[1:-1].replace("''", "'")
    if words[:1] == ["("]:
        words.pop(0)
        arguments = [] if words[0] == ")" else [_either(words, known, told)]
        assert words.pop(0) == ")"
        return _FUNCTIONS[word](told, *arguments)
    found: Any = known
    for part in word.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "always": lambda told: True,
    "success": lambda told: told.success,
    "failure": lambda told: not told.success,
    "fromJSON": lambda told, given: json.loads(given),
}
