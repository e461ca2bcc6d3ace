"""A Hub with a model, and publications of it that are there at once: real in everything but their proof."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from mopeq_hub import cli, pipeline
from mopeq_hub.hub import destination_for
from mopeq_hub.manifest import FIDELITY_NAME, weights_digest
from mopeq_hub.recipe import Recipe
from tests.conftest import SHAPES
from tests.hub import HubServer
from tests.report.documents import fidelity

MODEL, TO = "alice/shapes", "alice/shapes-MoPEQ"
MODEL_FILES = {path.name: path.read_bytes() for path in SHAPES.iterdir() if path.is_file() and path.suffix != ".jsonl"}


def write(*entries: Any, name: str = "catalog.yaml") -> str:
    """A catalog of these entries; where they do not say how widths are found, by the signal that takes least."""
    Path(name).write_text(yaml.safe_dump([_by_the_paper(entry) for entry in entries]))
    return name


def _by_the_paper(entry: Any) -> Any:
    if not isinstance(entry, dict) or not isinstance(entry.get("recipe", {}), dict):
        return entry
    return {**entry, "recipe": {"signal": "hessian", **entry.get("recipe", {})}}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str, str]:
    """Exit status, standard output and standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["republish", *arguments])
    printed = capsys.readouterr()
    return ended.value.code or 0, printed.out, printed.err


@pytest.fixture
def hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("HF_TOKEN", hub.token("alice"))
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture
def put(hub: HubServer, shared: Path) -> Callable[..., None]:
    """Puts the model on the Hub, and a publication of it by a recipe at each destination that is named.

    It is quantized from the Hub once for all tests, since the same files are the same commit on each of their Hubs. The
    proof is made up, so that no process has to load it.
    """
    hub.add_repo(MODEL, MODEL_FILES)

    def at(*destinations: str, recipe: Recipe | None = None) -> None:
        recipe = recipe or Recipe()
        folder = shared / f"catalog-{recipe.digest[:12]}"
        with FileLock(f"{folder}.lock"):
            if not folder.exists():
                _quantize(folder, recipe)
        for to in destinations:
            hub.add_repo(to, folder)

    return at


def _quantize(folder: Path, recipe: Recipe) -> None:
    manifest = pipeline.quantize(MODEL, folder, recipe).manifest
    proof = {**fidelity(manifest, compared=()), "weights_digest": weights_digest(manifest)}
    (folder / FIDELITY_NAME).write_text(json.dumps(proof))
    pipeline.card(folder, destination_for(TO, TO), space=False)
