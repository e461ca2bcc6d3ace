"""Benchmarks of the original and of what is published, through lmms-eval: what is asked for, and by which names.

lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval) is an optional extra, `eval`. It brings questions, prompts and
metrics; the models are loaded here (`adapter.py`), each in a process of its own (`worker.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from mopeq_hub.errors import UsageError

SUITE = "lmms-eval"
TASKS = {
    "MME": "mme",
    "TextVQA": "textvqa_val",
    "DocVQA": "docvqa_val",
    "MMMU": "mmmu_val",
    "InfoVQA": "infovqa_val",
    "AI2D": "ai2d",
    "RealWorldQA": "realworldqa",
    "ScienceQA": "scienceqa_img",
    "BLINK": "blink",
}
"""The benchmarks of MoPEQ's tables (arXiv 2509.02512), and the tasks of lmms-eval that are taken for them."""
PAPER = "paper"
"""A name for all of them."""


@dataclass(frozen=True)
class Benchmarks:
    """Which benchmarks both models are to answer.

    tasks: lmms-eval's name of each, by the name that is reported. limit: questions of each task, from the first; 0 for
    all. folder: task files of the user's, beside lmms-eval's own.
    """

    tasks: dict[str, str]
    limit: int = 0
    folder: Path | None = None


def benchmarks(names: Sequence[str], limit: int = 0, folder: str | Path | None = None) -> Benchmarks | None:
    """What is asked for by these names, without regard to case: those of `TASKS`, `paper` for all of them, or tasks of
    lmms-eval or of the folder by their own name; None for none.

    Raises UsageError on a limit below 0, a folder that is none, or choices about benchmarks without any.
    """
    known = {name.casefold(): name for name in TASKS}
    tasks: dict[str, str] = {}
    for name in names:
        if name.casefold() == PAPER:
            tasks |= TASKS
        else:
            shown = known.get(name.casefold(), name)
            tasks[shown] = TASKS.get(shown, name)
    if limit < 0:
        raise UsageError(f"--benchmark-limit {limit} is negative", "give how many questions, or 0 for all")
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(f"--benchmark-tasks {folder} is not a folder", "name the folder that holds the task files")
    if not tasks and (limit or folder):
        option = "--benchmark-tasks" if folder else "--benchmark-limit"
        raise UsageError(f"{option} is for --benchmarks", f"add --benchmarks, such as {','.join([*TASKS][:2])}")
    return Benchmarks(tasks, limit, Path(folder) if folder else None) if tasks else None


def version() -> str | None:
    """That of lmms-eval, or None where it is not installed."""
    try:
        return metadata.version(SUITE)
    except metadata.PackageNotFoundError:
        return None
