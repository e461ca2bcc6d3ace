"""What benchmarks can be asked for, and what lmms-eval calls them."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from mopeq_hub.benchmarks import TASKS, benchmarks
from mopeq_hub.errors import UsageError


def test_names_are_taken_in_any_case_and_other_names_are_tasks() -> None:
    asked = benchmarks(["mme", "textvqa", "gqa_lite"], limit=100)
    assert asked is not None
    assert asked.tasks == {"MME": "mme", "TextVQA": "textvqa_val", "gqa_lite": "gqa_lite"}
    assert asked.limit == 100


def test_paper_is_all_nine_of_the_paper() -> None:
    asked = benchmarks(["paper", "MME"])
    assert asked is not None
    assert asked.tasks == TASKS
    assert len(TASKS) == 9


def test_none_are_asked_for_by_no_name() -> None:
    assert benchmarks([]) is None


@pytest.mark.parametrize(
    ("names", "limit", "folder", "trouble"),
    [
        (["MME"], -1, None, "--benchmark-limit -1 is negative"),
        (["MME"], 0, "nowhere", "--benchmark-tasks nowhere is not a folder"),
        ([], 5, None, "--benchmark-limit is for --benchmarks"),
        ([], 0, ".", "--benchmark-tasks is for --benchmarks"),
    ],
)
def test_what_cannot_be_meant_is_refused(names: list[str], limit: int, folder: str | None, trouble: str) -> None:
    with pytest.raises(UsageError, match=trouble):
        benchmarks(names, limit, folder)


def test_lmms_eval_has_every_task_that_stands_for_a_benchmark() -> None:
    spec = find_spec("lmms_eval")
    assert spec is not None
    assert spec.origin is not None
    files = (Path(spec.origin).parent / "tasks").rglob("*.yaml")
    texts = [path.read_text("utf-8") for path in files if path.parent.name in {*TASKS.values(), *map(str.lower, TASKS)}]
    known = {
        name for text in texts for name in re.findall(r"^(?:task|group): *[\"']?(\w+)[\"']? *$", text, re.MULTILINE)
    }
    assert set(TASKS.values()) <= known
