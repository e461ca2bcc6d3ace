"""The pass layer by layer: what it finds, what it fetches and lets go, how it goes on, and what it says of damage."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mopeq_hub import MopeqError, Recipe
from mopeq_hub.families.base import GATED, ExpertsModule, Family, Form
from mopeq_hub.families.routing import find_routing
from mopeq_hub.model import open_model
from mopeq_hub.passage import Passage
from mopeq_hub.progress import Quiet
from mopeq_hub.sensitivity import BY_LAYER, LayerView, by_layer
from mopeq_hub.sensitivity.profile import Values
from mopeq_hub.sensitivity.run import measure
from tests.conftest import many_shards
from tests.sensitivity.layers import silu
from tests.tiny import deepseek_vl2, llava_over_deepseek_v2, qwen3_vl_moe

SIGNALS = sorted(BY_LAYER)
FAMILY = Family("made")
CONFIG = SimpleNamespace(hidden_size=16, hidden_act="silu")


def recipe(signal: str) -> Recipe:
    return Recipe(signal=signal, group_size=32)


def damage(folder: Path, ending: str) -> None:
    """Put a NaN into the first tensor whose name ends so."""
    path = next(folder.glob("*.safetensors"))
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.endswith(ending))
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("make", [llava_over_deepseek_v2, qwen3_vl_moe])
def test_router_and_norm_of_every_family_are_found(make: Callable[[Path], Path], tmp_path: Path) -> None:
    model = open_model(str(make(tmp_path / "model")))
    routing = model.layout.routing
    assert routing.trouble == ""
    assert set(routing.routers) == set(routing.norms) == set(model.layout.modules_of)
    for layer, name in routing.routers.items():
        assert name == f"model.language_model.layers.{layer}.mlp.gate.weight"
        assert routing.norms[layer] == f"model.language_model.layers.{layer}.post_attention_layernorm.weight"
    assert routing.offset == 0.0
    narrowed = torch.randn(3, 8)
    assert torch.equal(routing.gated(narrowed), silu(narrowed))
    assert routing.normalized == (make is qwen3_vl_moe)


@pytest.mark.parametrize(("kind", "scores"), [("tiny", "softmax"), ("base", "sigmoid")])
def test_what_a_router_makes_of_its_logits_is_what_the_config_says(kind: str, scores: str, tmp_path: Path) -> None:
    routing = open_model(str(deepseek_vl2(tmp_path / "model", kind))).layout.routing
    assert routing.scores == scores
    names = {layer: name.replace("weight", "e_score_correction_bias") for layer, name in routing.routers.items()}
    assert routing.biases == (names if kind == "base" else {})


@pytest.mark.parametrize(
    ("family", "scores"), [("deepseek_v3", "sigmoid"), ("deepseek_v2", "softmax"), ("qwen2_moe", "softmax")]
)
def test_where_the_config_says_nothing_the_code_does(family: str, scores: str) -> None:
    """transformers' DeepSeek-V3 knows sigmoids only; Qwen2's shared experts have a gate of one, its router has none."""
    from transformers import AutoConfig, AutoModel

    sizes = {"num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4}
    config = AutoConfig.for_model(
        family, num_hidden_layers=1, hidden_size=16, num_attention_heads=2, num_key_value_heads=2, vocab_size=8,
        first_k_dense_replace=0, intermediate_size=8, **sizes,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    module = ExpertsModule("layers.0.mlp.experts", 0, 0, 4, Form(GATED, transposed=False, biased=False))
    routing = find_routing(model, FAMILY, [module], config)
    assert routing.scores == scores
    assert routing.biases == ({0: "layers.0.mlp.gate.e_score_correction_bias"} if scores == "sigmoid" else {})


def test_a_bias_on_scores_reaches_the_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = deepseek_vl2(tmp_path / "model", "base")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    biases = {name: value for name, value in tensors.items() if name.endswith("e_score_correction_bias")}
    save_file(tensors | {name: torch.arange(len(value)).float() for name, value in biases.items()}, path)
    views: list[LayerView] = []

    def keep(view: LayerView, recipe: Recipe) -> dict[str, Values]:
        views.append(view)
        return {}

    monkeypatch.setitem(BY_LAYER, "distortion", keep)
    model = open_model(str(folder))
    with suppress(KeyError, ValueError, MopeqError):
        measure(model, recipe("distortion"), tmp_path / "notes", Quiet())
    assert len(views) == len(biases) > 0
    for view in views:
        assert view.scores == "sigmoid"
        assert view.bias is not None
        assert view.bias.tolist() == list(range(len(view.experts)))


def test_a_linear_router_and_a_norm_that_adds_one_are_found_too() -> None:
    class AddsOne(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(16))

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return states * (1 + self.weight)

    block = torch.nn.ModuleDict({
        "router": torch.nn.Linear(16, 4, bias=False),
        "experts": torch.nn.Linear(16, 4, bias=False),
        "shared": torch.nn.ModuleDict({"gate_proj": torch.nn.Linear(16, 4)}),
    })  # fmt: skip
    layer = torch.nn.ModuleDict({"moe": block, "post_attention_layernorm": AddsOne()})
    model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList([layer])}).to("meta")
    form = Form(GATED, transposed=False, biased=False)
    four, five = ([ExpertsModule("layers.0.moe.experts", 0, 0, count, form)] for count in (4, 5))
    found = find_routing(model, FAMILY, four, CONFIG)
    assert (found.routers, found.offset, found.normalized) == ({0: "layers.0.moe.router.weight"}, 1.0, True)
    del layer["post_attention_layernorm"]
    trouble = "post_attention_layernorm, known as the norm before the experts, is not around layers.0.moe.experts"
    assert find_routing(model, FAMILY, four, CONFIG).trouble == trouble
    assert "no parameter of shape [5, 16]" in find_routing(model, FAMILY, five, CONFIG).trouble


@pytest.mark.parametrize("signal", SIGNALS)
def test_shards_come_when_a_layer_needs_them_and_go_when_no_later_one_does(
    signal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []
    here: set[str] = set()

    class Watched(Passage):
        def get(self, shard: str) -> None:
            assert shard not in here
            here.add(shard)
            told.append(("get", shard))
            super().get(shard)

        def let_go(self, shard: str) -> None:
            here.remove(shard)
            told.append(("let go", shard))
            super().let_go(shard)

    monkeypatch.setattr(by_layer, "Passage", Watched)
    model = open_model(str(sharded_by_layer(tmp_path / "model")))
    whole = measure(model, recipe(signal), tmp_path / "notes", Quiet())
    assert here == set()
    first_gone = told.index(("let go", "model-00000.safetensors"))
    assert ("get", "model-00003.safetensors") not in told[:first_gone]
    assert (
        whole.experts
        == measure(open_model(str(model.source.location)), recipe(signal), tmp_path / "n", Quiet()).experts
    )


def sharded_by_layer(folder: Path) -> Path:
    """The bundled model with a file for each layer."""
    many_shards(folder, 1)
    tensors = load_file(folder / "model-00001-of-00001.safetensors")
    (folder / "model-00001-of-00001.safetensors").unlink()
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, values in tensors.items():
        number = name.split(".layers.")[1].split(".")[0] if "language_model" in name and ".layers." in name else "9"
        parts.setdefault(f"model-{int(number):05d}.safetensors", {})[name] = values
    for file, part in parts.items():
        save_file(part, folder / file, {"format": "pt"})
    weight_map = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("signal", SIGNALS)
def test_a_stopped_run_goes_on_with_the_layers_that_are_left(
    signal: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, notes = open_model(str(shapes)), tmp_path / "notes"
    whole = measure(model, recipe(signal), tmp_path / "others", Quiet())
    real, seen = BY_LAYER[signal], []

    def counted(view: LayerView, asked: Recipe) -> object:
        seen.append(view.layer)
        if seen == [0, 1, 2]:
            raise KeyboardInterrupt
        return real(view, asked)

    monkeypatch.setitem(BY_LAYER, signal, counted)
    with pytest.raises(KeyboardInterrupt):
        measure(model, recipe(signal), notes, Quiet())
    assert measure(model, recipe(signal), notes, Quiet()) == whole
    assert seen[3:] in ([2, 3], [1, 2, 3])
    assert not notes.exists()


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("ending", ["experts.7.gate_proj.weight", "mlp.gate.weight", "post_attention_layernorm.weight"])
def test_damage_is_named(
    signal: str, ending: str, damaged: Callable[[Callable[[Path], None]], Path], tmp_path: Path
) -> None:
    folder = damaged(lambda copy: damage(copy, ending))
    with pytest.raises(MopeqError, match=rf"layers\.\d\..*{ending} holds NaN"):
        measure(open_model(str(folder)), recipe(signal), tmp_path / "notes", Quiet())


def test_a_signal_says_what_it_misses(shapes: Path, tmp_path: Path) -> None:
    model = open_model(str(shapes))
    lost = replace(model.layout.routing, trouble="model.layers.0.mlp has no router")
    odd = replace(model, layout=replace(model.layout, routing=lost))
    with pytest.raises(MopeqError, match=r"--signal router needs .* model\.layers\.0\.mlp has no router; use --signal"):
        measure(odd, recipe("router"), tmp_path / "notes", Quiet())


def test_costs_are_numbers_of_four_digits(shapes: Path, tmp_path: Path) -> None:
    profile = measure(open_model(str(shapes)), recipe("distortion"), tmp_path / "notes", Quiet())
    values = np.array([values for parts in profile.experts.values() for values in parts.values()])
    assert (profile.widths, values.shape) == ((2, 3, 4), (288, 3))
    assert all(float(f"{value:.4g}") == value > 0 for value in values.flatten())
