"""Widths by projection, by layer, and of the rest, from the weights to the card: published, proven, checked, shown."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mopeq_hub import MopeqError, Recipe, publish
from mopeq_hub.check import check
from mopeq_hub.fidelity.by_blocks import measure_by_blocks
from mopeq_hub.fidelity.measure import check_loading, check_prepared
from mopeq_hub.manifest import read_fidelity, read_manifest
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.questions import read_questions
from tests.conftest import edit_json

BY_PROJECTION = Recipe(granularity="projection", allocator="knapsack", budget="0.29x", rest_bits="auto", bits=(2, 4))


@pytest.fixture(scope="module")
def by_projection(shapes: Path, some_questions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "shapes"
    publish(str(shapes), str(folder), BY_PROJECTION, questions=some_questions, compare=False)
    return folder


def troubles(folder: Path, load: bool = True) -> set[str]:
    return {finding.subject for finding in check(str(folder), load=load) if finding.trouble}


def test_a_map_by_projection_is_published_whole(by_projection: Path) -> None:
    manifest = read_manifest(by_projection)
    widths = [expert for layer in manifest["experts"] for expert in layer["bits"]]
    assert any(isinstance(expert, dict) for expert in widths)
    assert any(isinstance(expert, int) for expert in widths)
    assert not troubles(by_projection)
    card = (by_projection / "README.md").read_text("utf-8")
    assert "each projection of its 96 routed experts" in card
    assert "cannot run experts of different widths within one layer" in card
    rest = manifest["rest"]["widths"]
    assert f"{list(rest.values()).count(2)} layers have 2 bits" in card


def test_its_config_has_an_expression_for_each_layer_projection_and_width_at_most(by_projection: Path) -> None:
    rules = json.loads((by_projection / "config.json").read_text("utf-8"))["quantization_config"]["extra_config"]
    assert len(rules) <= 4 * (2 + 3 * 2) + 4 * len(BY_PROJECTION.widths) + 1
    manifest = read_manifest(by_projection)
    modules = {
        f"{layer['module']}.{index}.{projection}_proj": widths if isinstance(widths, int) else widths[projection]
        for layer in manifest["experts"]
        for index, widths in enumerate(layer["bits"])
        for projection in ("gate", "up", "down")
    }
    for name, bits in {**modules, **manifest["rest"]["widths"]}.items():
        assert next(rule for pattern, rule in rules.items() if re.search(pattern, name))["bits"] == bits


def test_block_by_block_it_measures_as_whole(by_projection: Path, shapes: Path, some_questions: Path) -> None:
    fidelity = read_fidelity(by_projection)
    assert fidelity is not None
    assert (fidelity["method"], fidelity["loading"]["published_dtype"]) == ("whole", "float32")
    model, questions = open_model(str(shapes)), read_questions(some_questions)
    by_blocks = measure_by_blocks(
        model, by_projection, read_manifest(by_projection), questions, "float32", Quiet()
    ).result()
    assert fidelity["kl"]["mean"] > 1e-4
    assert by_blocks["kl_mean"] == pytest.approx(fidelity["kl"]["mean"], abs=1e-5)


def narrower_projection(manifest: dict[str, Any]) -> None:
    widths = next(each for each in manifest["experts"][0]["bits"] if isinstance(each, dict))
    widths |= {"gate": 4, "up": 4, "down": 4}


def other_rest(manifest: dict[str, Any]) -> None:
    name = next(iter(manifest["rest"]["widths"]))
    manifest["rest"]["widths"][name] = 8


def forgotten_rest(manifest: dict[str, Any]) -> None:
    manifest["rest"]["widths"].popitem()


@pytest.mark.parametrize("damage", [narrower_projection, other_rest, forgotten_rest])
def test_a_map_that_says_something_else_than_the_files_is_found(
    damage: Any, by_projection: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(by_projection, folder)
    edit_json(folder / "mopeq.json", damage)
    found = {"every tensor fits the bit map", "the loader's configuration fits the bit map"}
    assert troubles(folder, load=False) == found


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (narrower_projection, "gate_proj with 2 bits, not 4"),
        (other_rest, "k_proj with . bits, not 8"),
        (forgotten_rest, "v_proj with . bits"),
    ],
)
def test_the_loaders_widths_are_compared_one_by_one(damage: Any, words: str, by_projection: Path) -> None:
    manifest = read_manifest(by_projection)
    loading = check_prepared(by_projection, manifest, Quiet())
    damage(manifest)
    with pytest.raises(MopeqError, match=words):
        check_loading(loading, manifest)


def test_all_experts_of_a_layer_have_one_width(shapes: Path, some_questions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "by-layer"
    publish(str(shapes), str(folder), Recipe(granularity="layer"), questions=some_questions, compare=False, space=False)
    assert [len(set(layer["bits"])) for layer in read_manifest(folder)["experts"]] == [1] * 4
    assert not troubles(folder)
    card = (folder / "README.md").read_text("utf-8")
    assert "engines with one width a layer (vLLM, llama.cpp, MLX) need" in card
    assert "cannot run experts of different widths" not in card
