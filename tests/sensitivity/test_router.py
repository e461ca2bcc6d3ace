"""The router's signal: less change is more bits, uneven weights are raised, and the earlier checkpoint is pinned."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mopeq_hub import MopeqError, Recipe
from mopeq_hub.errors import UsageError
from mopeq_hub.experts import Expert
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.sensitivity.given import Given
from mopeq_hub.sensitivity.initial import pinned
from mopeq_hub.sensitivity.router import places, raised
from mopeq_hub.sensitivity.run import measure
from mopeq_hub.source import open_source
from tests.sensitivity.layers import Held, layer

if TYPE_CHECKING:
    from tests.hub import HubServer

RECIPE = Recipe(signal="router")


def sensitivities(found: dict[str, tuple[float, ...]]) -> list[float]:
    """Of each expert, the sum over its projections."""
    count = len(found) // 3
    return [sum(found[f"{index}.{name}"][0] for name in ("gate", "up", "down")) for index in range(count)]


def change_routers(folder: Path, change: Callable[[str, "np.ndarray"], "np.ndarray"]) -> None:
    """Change each router's weight in the files of a copied model."""
    import torch

    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        for name in tensors:
            if name.endswith("mlp.gate.weight"):
                changed = np.ascontiguousarray(change(name, tensors[name].float().numpy()))
                tensors[name] = torch.from_numpy(changed).to(tensors[name].dtype)
        save_file(tensors, path, {"format": "pt"})


def test_uneven_weights_are_moved_up_before_the_first_that_has_a_third_of_their_variance() -> None:
    assert raised([0, 1, 2, 3], [1, 1, 1, 1]) == [0, 1, 2, 3]
    assert raised([0, 1, 2, 3], [1, 1, 1, 3]) == [0, 1, 2, 3]
    assert raised([0, 1, 2, 3], [2, 1, 1, 3.1]) == [0, 3, 1, 2]
    assert raised([0, 1, 2, 3], [1, 1, 9, 40]) == [3, 2, 0, 1]


def test_the_less_the_routers_vector_changed_the_more_sensitive_is_the_expert() -> None:
    view = layer(4)
    initial = view.router * np.array([[0.9], [0.5], [0.99], [0.7]], np.float32)
    view.router[:] /= np.linalg.norm(view.router, axis=1, keepdims=True)
    initial = view.router * np.array([[0.9], [0.5], [0.99], [0.7]], np.float32)
    assert sensitivities(places(replace(view, initial=initial), RECIPE)) == pytest.approx([0.75, 0.25, 1.0, 0.5])


def test_without_an_earlier_checkpoint_the_norm_stands_in() -> None:
    view = layer(4)
    view.router[:] *= np.array([[3], [1], [4], [2]], np.float32) / np.linalg.norm(view.router, axis=1, keepdims=True)
    assert sensitivities(places(view, RECIPE)) == pytest.approx([0.5, 1.0, 0.25, 0.75])


def test_a_neuron_of_uneven_weights_raises_its_expert() -> None:
    view = layer(4)
    view.router[:] *= np.array([[1], [2], [3], [4]], np.float32) / np.linalg.norm(view.router, axis=1, keepdims=True)
    view.experts[3]["gate"].values[9] *= 5  # type: ignore[attr-defined]
    assert sensitivities(places(view, RECIPE)) == pytest.approx([0.75, 0.5, 0.25, 1.0])


def test_damage_is_named() -> None:
    view = layer(4)
    broken = np.full((32, 64), np.nan)
    experts = ({**view.experts[0], "gate": Held("the.gate.of.0", broken)}, *view.experts[1:])
    with pytest.raises(MopeqError, match=r"the\.gate\.of\.0 holds NaN"):
        places(replace(view, experts=experts), RECIPE)  # type: ignore[arg-type]


def test_a_model_is_measured_against_an_earlier_folder(
    shapes: Path, damaged: Callable[[Callable[[Path], None]], Path], tmp_path: Path
) -> None:
    """Where one expert's router vector had the same norm before and all others half of theirs, it comes first."""

    def halved(name: str, router: np.ndarray) -> np.ndarray:
        return router * np.where(np.arange(len(router)) == 7, 1, 0.5)[:, None]

    earlier = damaged(lambda folder: change_routers(folder, halved))
    recipe, location = pinned(replace(RECIPE, initial=str(earlier)))
    profile = measure(open_model(str(shapes)), recipe, tmp_path / "notes", Quiet(), given=Given(initial=location))
    assert [profile.sensitivities[Expert(number, 7)] for number in range(4)] == pytest.approx([1, 1, 1, 1])
    assert profile.signal == {"name": "router", "initial": f"copied-model@{open_source(str(earlier)).commit}"}


def test_a_profile_without_one_says_that_it_is_a_stand_in(shapes: Path, tmp_path: Path) -> None:
    told: list[str] = []

    class Told(Quiet):
        def say(self, text: str) -> None:
            told.append(text)

    profile = measure(open_model(str(shapes)), RECIPE, tmp_path / "notes", Told())
    assert "earlier checkpoint" in profile.signal["stand_in"]
    assert any("--initial" in text for text in told)


def test_the_recipe_names_the_contents_of_the_earlier_checkpoint(shapes: Path) -> None:
    recipe, location = pinned(replace(RECIPE, initial=str(shapes)))
    assert (recipe.initial, location) == (f"shapes-moe-vl@{open_source(str(shapes)).commit}", str(shapes.resolve()))
    assert recipe.to_dict()["initial"] == recipe.initial
    assert recipe.digest != RECIPE.digest
    assert pinned(RECIPE) == (RECIPE, None)


def test_what_cannot_be_an_earlier_checkpoint_is_refused_in_words(
    shapes: Path, damaged: Callable[[Callable[[Path], None]], Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--signal hessian needs no --initial"):
        Recipe(initial="someone/model")
    with pytest.raises(UsageError, match="contents of a folder"):
        pinned(replace(RECIPE, initial="model@" + "0" * 64))
    from tests.tiny import llava_over_deepseek_v2

    other = llava_over_deepseek_v2(tmp_path / "other")
    with pytest.raises(MopeqError, match=r"no earlier checkpoint of shapes-moe-vl: .* layer 0 .* \[24, 128\], it has"):
        measure(open_model(str(shapes)), RECIPE, tmp_path / "notes", Quiet(), given=Given(initial=str(other)))
    broken = damaged(lambda folder: change_routers(folder, lambda name, router: router * np.nan))
    with pytest.raises(MopeqError, match=r"mlp\.gate\.weight of copied-model holds NaN"):
        measure(open_model(str(shapes)), RECIPE, tmp_path / "notes", Quiet(), given=Given(initial=str(broken)))


def test_of_an_earlier_checkpoint_on_the_hub_only_the_routers_come(
    hub: "HubServer", shapes: Path, tmp_path: Path
) -> None:
    from mopeq_hub.sensitivity.initial import EarlierRouters

    commit = hub.add_repo("someone/earlier", shapes)
    recipe, location = pinned(replace(RECIPE, initial="someone/earlier"))
    assert (recipe.initial, location) == (f"someone/earlier@{commit}",) * 2
    earlier = EarlierRouters(str(location), open_model(str(shapes)))
    assert earlier.read(2).shape == (24, 128)
    assert hub.traffic("someone/earlier").downloaded < 0.3 * open_model(str(shapes)).checkpoint.nbytes
