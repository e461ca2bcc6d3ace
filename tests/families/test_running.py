"""Models of every form of experts and layers, run: part by part they compute what they compute whole, and what is seen
of their experts is what these give."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mopeq_hub import Recipe, plan, selection, workplace
from mopeq_hub.calibration import LiveExpert, load, numbers_of
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.blocks import BlockPass
from mopeq_hub.fidelity.measure import check_blocks
from mopeq_hub.model import open_model
from mopeq_hub.quantization.calibrated import check_memory
from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import Row
from mopeq_hub.sensitivity.by_layer import check_routing
from mopeq_hub.sensitivity.watching import Watch
from tests.families import zoo
from tests.families.test_every_family import save
from tests.fidelity.test_blocks import offers, whole

LAYERS = [
    "deepseek_v4", "dots3_note", "gpt_oss", "glm_moe_dsa", "mistral_large4", "nemotron_h_omni", "qwen3_next",
    "qwen3_omni_moe", "zaya",
]  # fmt: skip
"""Layers of several streams, beside experts of another part, of two kinds of attention, that hand on what they attend
to, with rotary embeddings from the file, before a head that is not the whole's, that remember, of one part of several,
and that come after weights of the text model's own."""
EXPERTS = [
    "aria", "deepseek_v4", "ernie4_5_vl_moe", "gpt_oss", "llama4", "muse_spark", "nemotron_h", "qwen3_omni_moe",
    "step3p7", "zaya",
]  # fmt: skip
"""Transposed, clamped, in two modules a layer, biased and interleaved, called without a choice, followed by a norm,
ungated, of one part of several, outside transformers' interface, skipped."""


def text(number: int, tokens: int) -> Row:
    ids = torch.randint(8, 200, (1, tokens), generator=torch.Generator().manual_seed(number))
    return Row(number, {"input_ids": ids}, tokens - 6)


@pytest.mark.parametrize("name", LAYERS)
def test_part_by_part_the_figures_are_those_of_the_whole_models(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "model")
    model = open_model(str(folder))
    rows = [text(0, 14), text(1, 20), text(2, 20)]
    blocks, heir = (BlockPass(model, rows, "float32") for _ in range(2))
    order = list(offers(model))
    for offer in order:
        blocks.offer(*offer)
        if len(blocks.errors) == 1 and not (tmp_path / "kept").exists():
            blocks.save(tmp_path / "kept")
    assert blocks.result() == pytest.approx(whole(model, folder, rows), abs=1e-6)
    assert blocks.result()["kl_mean"] > 1e-4
    if (tmp_path / "kept").exists():
        assert heir.resume(tmp_path / "kept")
        for offer in order:
            heir.offer(*offer)
        assert heir.result() == blocks.result()


@pytest.mark.parametrize("name", EXPERTS)
def test_what_is_seen_of_the_experts_gives_their_output(name: str, tmp_path: Path) -> None:
    folder = save(name, tmp_path / "model")
    layout = open_model(str(folder)).layout
    live = load({"folder": folder, "auto_class": layout.auto_class}).requires_grad_(False)
    watch = Watch(live, layout)
    for inputs, modules in ((zoo.inputs_of(name), layout.modules), (text(0, 14).inputs, layout.modules[:1])):
        watch.begin()
        with torch.inference_mode():
            live(**inputs, use_cache=False)
        assert set(modules) <= {seen.held for seen in watch.passes}
        for seen in watch.passes:
            given = torch.zeros_like(seen.states)
            for index in numbers_of(seen.chosen):
                places, states, weights = seen.of(index)
                expert = LiveExpert(live.get_submodule(seen.held.name), seen.held, index)
                made = expert.gated(expert.narrowed(states)) @ expert.weight(1).T
                given.index_add_(0, places, weights * expert.finished(made))
            output = seen.output.flatten(0, -2)
            assert output.abs().max() > 0
            assert (given - output).abs().max() < 1e-5 * output.abs().max()


def test_a_model_whose_layers_look_further_back_is_not_measured_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(save("inkling2", tmp_path / "model")))
    blocks = BlockPass(model, [text(0, 14)], "float32")
    for offer in offers(model):
        blocks.offer(*offer)
    assert math.isnan(blocks.result()["kl_mean"]), "no wrong figure, whoever asks"
    monkeypatch.setattr(workplace, "free_memory", lambda: 1_000_000_000)
    with pytest.raises(MopeqError, match="a model whose layers look at what earlier ones gave is not"):
        check_blocks(model)
    assert plan(model, Recipe(group_size=32)).fidelity is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama4", "auto-round puts modules of its own in the place of model's experts"),
        ("step3p7", "auto-round does not tune model's experts as they compute"),
    ],
)
def test_what_auto_round_does_not_tune_is_refused_before_anything_is_run(name: str, words: str, tmp_path: Path) -> None:
    model = open_model(str(save(name, tmp_path / "model")))
    with pytest.raises(MopeqError, match=words):
        check_memory(model, Recipe(quantizer="signround", group_size=32))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama4", "its routers weigh what goes into experts"),
        ("gpt_oss", "its experts have biases"),
        ("ernie4_5_vl_moe", "layer 1 has experts of two kinds"),
        ("flex_olmo", "no norm comes before its experts"),
    ],
)
def test_a_layer_that_distortion_does_not_know_is_told_and_best_does_without(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(str(save(name, tmp_path / "model")))
    with pytest.raises(MopeqError, match=words):
        check_routing(model, Recipe(signal="distortion"))
    best: dict[str, Any] = {"signal": "best", "allocator": "measured", "budget": "0.4x", "group_size": 32}
    monkeypatch.setattr(workplace, "free_memory", lambda: 1)
    here = selection.settled(Recipe(**best), model, read_questions(None))
    assert (here.signal, here.allocator) == ("hessian", "knapsack")
    assert here in selection.settled_anywhere(Recipe(**best), read_questions(None))
