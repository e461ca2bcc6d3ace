"""Plots are checked for what a program can see: that they are there, their width, and the same bytes every time."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mopeq_hub.recipe import Recipe
from mopeq_hub.report.plots import draw
from tests.report.documents import fidelity, manifest

MODELS = {
    "small": {"layers": 4, "experts": 24},
    "large": {"layers": 94, "experts": 128},
    "first layer dense": {"layers": 12, "experts": 64, "dense": 1},
    "one width": {"layers": 2, "experts": 8, "recipe": Recipe((4,))},
    "a width a layer": {"layers": 48, "experts": 128, "recipe": Recipe(granularity="layer")},
    "a width a projection": {"layers": 4, "experts": 24, "dense": 1, "recipe": Recipe(granularity="projection")},
    "very many projections": {"layers": 94, "experts": 128, "recipe": Recipe(granularity="projection")},
}


@pytest.mark.parametrize("name", MODELS)
def test_plots_have_the_cards_width_and_a_sensible_height(name: str, tmp_path: Path) -> None:
    made = manifest(**MODELS[name])  # type: ignore[arg-type]
    drawn = draw(made, fidelity(made), tmp_path)
    assert [path.name for path in drawn] == ["sensitivity.png", "bits.png", "bits_per_layer.png", "size_fidelity.png"]
    for path in drawn:
        assert path.parent == tmp_path / "plots"
        with Image.open(path) as image:
            width, height = image.size
            assert "Software" not in image.info
        assert width == 1600
        assert 350 <= height <= 1600


def test_the_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    made = manifest(dense=1)
    first, second = (draw(made, fidelity(made), tmp_path / run) for run in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_what_was_not_measured_is_not_drawn(tmp_path: Path) -> None:
    made = manifest()
    assert "size_fidelity.png" not in [path.name for path in draw(made, None, tmp_path)]
    assert draw(made, fidelity(made, by_blocks=True), tmp_path)[-1].name == "layer_errors.png"


def test_values_at_the_edge_can_be_drawn(tmp_path: Path) -> None:
    made = manifest(1, 1)
    made["experts"][0]["sensitivity"] = [0.0]
    proof = fidelity(made)
    proof["kl"]["mean"] = 0.0
    proof["comparisons"][0]["kl"]["mean"] = float("inf")
    proof["comparisons"][1]["name"] = "$unfinished mathematics \\frac{" * 4
    assert len(draw(made, proof, tmp_path)) == 4


def test_importing_the_reports_imports_no_matplotlib() -> None:
    imported = "import sys, mopeq_hub.report.card, mopeq_hub.report.plots, mopeq_hub.report.summary; "
    heavy = imported + "print({'matplotlib', 'torch', 'numpy', 'jinja2', 'rich', 'huggingface_hub'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
