"""How well a signal tells experts apart: numbers, and the sentence they become."""

from pathlib import Path

import numpy as np
import pytest

from mopeq_hub import Recipe
from mopeq_hub.allocation.spread import spread_of
from mopeq_hub.experts import Expert
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.report.spread import in_words
from mopeq_hub.sensitivity import Profile
from mopeq_hub.sensitivity.run import measure
from tests.tiny import llava_over_deepseek_v2


def profile(layers: list[list[float]]) -> Profile:
    """Each expert's one number."""
    experts = {
        Expert(layer, index): {"up": (value,)} for layer, each in enumerate(layers) for index, value in enumerate(each)
    }
    return Profile({"name": "hessian"}, experts)


def drawn(level: float, spread: float, count: int = 32, seed: int = 0) -> list[float]:
    return list(level * (1 + spread * np.random.default_rng(seed).standard_normal(count)))


def test_spread_is_relative_within_layers_and_between_them() -> None:
    spread = spread_of(profile([[1, 3], [10, 30], [20, 60]]), Recipe())
    assert spread["within"] == 0.5
    assert spread["between"] == pytest.approx(np.std([2, 20, 40]) / np.mean([2, 20, 40]), abs=1e-4)
    louder = spread_of(profile([[100, 300], [1000, 3000], [2000, 6000]]), Recipe())
    assert louder == spread


def test_noise_is_called_noise() -> None:
    spread = spread_of(profile([drawn(1000, 0.02, seed=seed) for seed in range(6)]), Recipe())
    assert spread["silhouette"] == pytest.approx(0.53, abs=0.05)
    assert "hardly differ" in in_words(spread)
    assert "split noise" in in_words(spread)


def test_groups_are_called_groups() -> None:
    layers = [[*drawn(1, 0.05, 12, seed), *drawn(5, 0.05, 12, seed + 9), *drawn(10, 0.05, 8, seed)] for seed in (1, 2)]
    spread = spread_of(profile(layers), Recipe())
    assert spread["silhouette"] is not None
    assert spread["silhouette"] > 0.85
    assert "groups that stand apart (silhouette 0." in in_words(spread)


def test_values_that_run_on_without_gaps_are_said_to() -> None:
    words = in_words(spread_of(profile([list(np.linspace(1, 5, 40))] * 3), Recipe()))
    assert "without gaps" in words
    assert "hardly" not in words


def test_by_layer_the_clusters_are_those_of_each_layer() -> None:
    """Layers far apart, nothing within them."""
    apart = profile([drawn(level, 0.01, seed=int(level)) for level in (1, 5000, 10000)])
    of_model, of_layers = (spread_of(apart, Recipe(scope=scope))["silhouette"] for scope in ("model", "layer"))
    assert of_model is not None
    assert of_layers is not None
    assert of_model > 0.95 > 0.65 > of_layers


@pytest.mark.parametrize("layers", [[[2.0, 2.0], [2.0, 2.0]], [[0.0, 0.0]]])
def test_values_that_are_all_the_same_have_no_clusters(layers: list[list[float]]) -> None:
    assert spread_of(profile(layers), Recipe()) == {"within": 0, "between": 0, "all": 0, "silhouette": None}
    assert "hardly differ" in in_words(spread_of(profile(layers), Recipe()))


def test_one_width_has_no_clusters() -> None:
    spread = spread_of(profile([[1, 2, 4, 8]]), Recipe((4,)))
    assert spread["silhouette"] is None
    assert in_words(spread).startswith("The experts' sensitivities vary by ")


def test_untrained_weights_hardly_differ_and_trained_ones_do_by_what_they_do(shapes: Path, tmp_path: Path) -> None:
    untrained = measure(open_model(str(llava_over_deepseek_v2(tmp_path / "m"))), Recipe(), tmp_path / "notes", Quiet())
    assert spread_of(untrained, Recipe())["all"] < 0.02  # type: ignore[operator]
    asked = Recipe(signal="distortion")
    words = in_words(spread_of(measure(open_model(str(shapes)), asked, tmp_path / "notes", Quiet()), asked))
    assert "hardly" not in words
