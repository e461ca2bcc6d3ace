"""A Hub on which the bundled model was published at two budgets, with uniform widths beside them: made once for all
workers, read by some tests, copied by those that change it."""

import os
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from mopeq_hub import Recipe, publish_variants
from mopeq_hub.progress import Advance, Quiet
from mopeq_hub.variants import Variants
from tests.conftest import SHAPES
from tests.hub import HubServer, client_pointed_at

BUDGETS = ("2.5bpw", "3.5bpw")
RECIPE = Recipe(bits=(2, 4))
REPO = "alice/shapes-MoPEQ"
QUESTIONS = 8


class Stages(Quiet):
    """Remembers which stages were begun, and what was said."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.said: list[str] = []

    @contextmanager
    def stage(self, name: str, total: int, unit: str = "bytes") -> Iterator[Advance]:
        self.names.append(name)
        yield lambda amount: None

    def say(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True)
class Shelf:
    """The Hub, what came of publishing, and which stages that had. questions: the file that all were measured on."""

    hub: HubServer
    made: Variants
    stages: list[str]
    questions: Path


def fill(folder: Path) -> None:
    """Leave in `folder` what `shelf_of` begins with, and `mopeq-home`, with the original's logits on the questions."""
    shutil.copytree(SHAPES / "images", folder / "images")
    lines = (SHAPES / "eval.jsonl").read_text("utf-8").splitlines(keepends=True)[:QUESTIONS]
    questions = folder / "questions.jsonl"
    questions.write_text("".join(lines), "utf-8")
    stages = Stages()
    with warm(folder), HubServer(folder / "server") as hub, client_pointed_at(hub, folder / "home"):
        os.environ["HF_TOKEN"] = hub.token("alice")
        made = publish_variants(str(SHAPES), REPO, RECIPE, BUDGETS, questions=questions, compare=True, progress=stages)
        hub.keep()
    shutil.rmtree(folder / "home")
    (folder / "made.pickle").write_bytes(pickle.dumps((made, stages.names)))


@contextmanager
def warm(folder: Path) -> Iterator[None]:
    """What was measured for that shelf is known to this process and those it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOPEQ_HOME", str(folder / "mopeq-home"))
        yield


@contextmanager
def shelf_of(folder: Path, own: Path) -> Iterator[Shelf]:
    """What was left in `folder`, on a Hub of its own below `own`, to which the client in this process is pointed."""
    shutil.copytree(folder / "server", own / "server")
    made, stages = pickle.loads((folder / "made.pickle").read_bytes())
    with warm(folder), HubServer(own / "server") as hub, client_pointed_at(hub, own / "home"):
        os.environ["HF_TOKEN"] = hub.token("alice")
        yield Shelf(hub, made, stages, folder / "questions.jsonl")
