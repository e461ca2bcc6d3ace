"""The damage without data: what the layer's own block loses, at every width, whoever is picked and on any machine."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mopeq_hub import MopeqError, Recipe
from mopeq_hub.experts import Expert
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.model import Model, open_model
from mopeq_hub.packing import dequantize, quantize
from mopeq_hub.progress import Quiet
from mopeq_hub.sensitivity import distortion
from mopeq_hub.sensitivity.run import measure
from tests.sensitivity.layers import HIDDEN, Held, layer

RECIPE = Recipe(signal="distortion", group_size=32)


def moe_block(model: Model, name: str, folder: Path) -> Any:
    """transformers' own MoE block of one layer, with the weights that the file has."""
    from transformers import AutoConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    block = Qwen3MoeSparseMoeBlock(AutoConfig.from_pretrained(folder).get_text_config()).float()
    layer_number = int(name.split(".layers.")[1].split(".")[0])
    with torch.no_grad():
        block.gate.weight.copy_(tensor(model, model.layout.source_of[f"{name}.gate.weight"]))
        for expert, parts in model.layout.experts.items():
            if expert.layer == layer_number:
                whole = {part.projection: torch.from_numpy(part.read(model.checkpoint).float32()) for part in parts}
                block.experts.gate_up_proj[expert.index] = torch.cat([whole["gate"], whole["up"]])
                block.experts.down_proj[expert.index] = whole["down"]
    return block


def tensor(model: Model, source: str) -> torch.Tensor:
    path = model.source.path(model.checkpoint.tensors[source].file)
    with safe_open(path, "pt") as file:
        return file.get_tensor(source).float()


@pytest.mark.parametrize(("index", "projection"), [(12, "gate"), (13, "up"), (9, "down")])
def test_a_cost_is_the_share_that_the_layers_own_block_loses(
    index: int, projection: str, shapes: Path, tmp_path: Path
) -> None:
    """transformers' block, on other inputs, with one projection of one expert at 2 bits."""
    model = open_model(str(shapes))
    number = 2
    block = moe_block(model, f"model.language_model.layers.{number}.mlp", shapes)
    gamma = tensor(model, model.layout.source_of[model.layout.routing.norms[number]])
    drawn = torch.randn(20_000, len(gamma), generator=torch.Generator().manual_seed(5))
    inputs = (gamma * drawn / drawn.square().mean(1, keepdim=True).sqrt())[None]
    matrix = next(part for part in model.layout.experts[Expert(number, index)] if part.projection == projection)
    narrow = torch.from_numpy(dequantize(quantize(matrix.read(model.checkpoint), 2, 32, True, True), 2, True))
    with torch.no_grad():
        whole = block(inputs)
        rows = {"gate": slice(0, 64), "up": slice(64, 128)}.get(projection, slice(None))
        held = block.experts.down_proj if projection == "down" else block.experts.gate_up_proj
        held[index, rows] = narrow
        lost = (block(inputs) - whole).square().sum(2).mean() / whole.square().sum(2).mean()
    profile = measure(model, RECIPE, tmp_path / "notes", Quiet())
    assert profile.experts[Expert(number, index)][projection][0] == pytest.approx(float(lost), rel=0.25)


@pytest.mark.parametrize("normalized", [True, False])
def test_a_router_of_sigmoids_weighs_as_its_own_block_does(normalized: bool) -> None:
    """DeepSeek-VL2's block with a bias on its scores, on other inputs, with one projection of an expert at 2 bits."""
    from mopeq_hub.modeling.deepseek_vl2.configuration_deepseek_vl2 import DeepseekVLV2TextConfig
    from mopeq_hub.modeling.deepseek_vl2.text_deepseek_vl2 import DeepseekVLV2MoE

    # Scores far apart, of which the bias turns the order around: a softmax would weigh and choose otherwise.
    bias = np.linspace(-0.4, 0.4, 8).astype(np.float32)
    view = layer(scores="sigmoid", bias=bias, normalized=normalized)
    view.router[:] = 2 * view.router - 0.1 * view.router.mean(1, keepdims=True)
    config = DeepseekVLV2TextConfig(
        hidden_size=HIDDEN, moe_intermediate_size=32, n_routed_experts=8, n_shared_experts=None, num_experts_per_tok=2,
        scoring_func="sigmoid", topk_method="noaux_tc", n_group=1, topk_group=1, norm_topk_prob=normalized,
        routed_scaling_factor=2.5, hidden_act="silu",
    )  # fmt: skip
    block = DeepseekVLV2MoE(config).float()
    whole = [{name: torch.from_numpy(part.values) for name, part in parts.items()} for parts in view.experts]  # type: ignore[attr-defined]
    drawn = torch.randn(20_000, HIDDEN, generator=torch.Generator().manual_seed(5))
    inputs = (drawn / drawn.square().mean(1, keepdim=True).sqrt())[None]
    costs = distortion.costs(view, RECIPE)
    by_softmax = distortion.costs(replace(view, scores="softmax", bias=None), RECIPE)
    with torch.no_grad():
        block.gate.weight.copy_(torch.from_numpy(view.router))
        block.gate.e_score_correction_bias.copy_(torch.from_numpy(bias))
        for index, parts in enumerate(whole):
            block.experts.gate_up_proj[index] = torch.cat([parts["gate"], parts["up"]])
            block.experts.down_proj[index] = parts["down"]
        given = block(inputs)
        for index in (1, 7):
            narrow = quantize(Weight(view.experts[index]["down"].values), 2, 32, True, True)  # type: ignore[attr-defined]
            block.experts.down_proj[index] = torch.from_numpy(dequantize(narrow, 2, True))
            lost = (block(inputs) - given).square().sum(2).mean() / given.square().sum(2).mean()
            block.experts.down_proj[index] = whole[index]["down"]
            assert costs[f"{index}.down"][0] == pytest.approx(float(lost), rel=0.25)
            assert by_softmax[f"{index}.down"][0] != pytest.approx(float(lost), rel=0.25)


def test_more_bits_cost_less() -> None:
    for costs in distortion.costs(layer(), replace(RECIPE, bits=(2, 3, 4, 8))).values():
        assert costs[0] > 2 * costs[1] > 4 * costs[2] > 20 * costs[3] > 0


def test_an_expert_that_is_never_picked_costs_little_and_not_nothing() -> None:
    view = layer()
    view.router[0] = 0
    view.router[1:] *= 4
    costs = distortion.costs(view, RECIPE)
    never, others = costs["0.up"][0], [costs[f"{index}.up"][0] for index in range(1, 8)]
    assert 0 < never < min(others) / 5


def test_experts_that_are_always_picked_are_measured_too() -> None:
    view = layer(2, experts_per_token=2)
    assert all(value > 0 for costs in distortion.costs(view, RECIPE).values() for value in costs)


def test_louder_layers_are_on_the_same_scale() -> None:
    quiet, loud = layer(), layer()
    for parts in loud.experts:
        parts["down"].values *= 4  # type: ignore[attr-defined]
    once, again = distortion.costs(quiet, RECIPE), distortion.costs(loud, RECIPE)
    assert {name: pytest.approx(costs, rel=1e-3) for name, costs in once.items()} == again


def test_the_norm_says_which_inputs_count() -> None:
    """Where the norm lets nothing through of half of the inputs, their weights are lost at no cost."""
    view = layer()
    view.norm[: HIDDEN // 2] = 0
    noisy = layer()
    noisy.norm[: HIDDEN // 2] = 0
    for parts in noisy.experts:
        parts["up"].values[:, : HIDDEN // 2] *= 1.5  # type: ignore[attr-defined]
    once, again = distortion.costs(view, RECIPE), distortion.costs(noisy, RECIPE)
    assert once == again


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    before = torch.get_num_threads()
    expected = distortion.costs(layer(12), RECIPE)
    try:
        torch.set_num_threads(threads)
        assert distortion.costs(layer(12), RECIPE) == expected
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_another_seed_draws_other_inputs_that_say_nearly_the_same() -> None:
    once, again = distortion.costs(layer(), RECIPE), distortion.costs(layer(), replace(RECIPE, seed=1))
    assert once != again
    assert {name: pytest.approx(costs, rel=0.5) for name, costs in once.items()} == again


def test_experts_without_a_gate_are_measured_too() -> None:
    view = layer()
    experts = tuple({name: parts[name] for name in ("up", "down")} for parts in view.experts)
    plain = replace(view, experts=experts, gated=torch.nn.functional.silu)
    assert set(distortion.costs(plain, RECIPE)) == {f"{index}.{name}" for index in range(8) for name in ("up", "down")}


def test_damage_is_named() -> None:
    view = layer()
    broken = view.experts[5]["down"].read(view.checkpoint).values.copy()
    broken[3, 7] = np.nan
    experts = list(view.experts)
    experts[5] = {**experts[5], "down": Held("the.down.of.5", broken)}  # type: ignore[dict-item]
    with pytest.raises(MopeqError, match=r"the\.down\.of\.5 holds NaN"):
        distortion.costs(replace(view, experts=tuple(experts)), RECIPE)


def test_the_weight_is_the_one_that_is_published() -> None:
    """The damage of a weight that its width holds exactly is none."""
    view = layer()
    codes = np.random.default_rng(1).integers(-2, 2, (HIDDEN, 32))
    codes[:, 0] = -2
    held = Held("exact", codes / 4)
    assert Weight(held.values).shape == (HIDDEN, 32)
    experts = ({**view.experts[0], "down": held}, *view.experts[1:])
    assert distortion.costs(replace(view, experts=experts), RECIPE)["exact"] == pytest.approx((0, 0, 0), abs=1e-9)  # type: ignore[arg-type]
