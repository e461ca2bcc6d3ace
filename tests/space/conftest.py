"""A Space rendered beside a folder, and its modules, imported as the app imports them."""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from mopeq_hub.space import render_space
from tests.report.documents import manifest

MODEL = Path(__file__).parents[1] / "assets" / "shapes-moe-vl"
Load = Callable[[str], ModuleType]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def load(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module of a Space rendered beside the folder `published`, whose original is the small trained model."""
    render_space(tmp_path / "space", manifest(), "../published", str(MODEL), None)
    monkeypatch.syspath_prepend(str(tmp_path / "space"))
    before = set(sys.modules)
    yield importlib.import_module
    names = {path.stem for path in (tmp_path / "space").glob("*.py")}
    for name in names & (set(sys.modules) - before):
        del sys.modules[name]
