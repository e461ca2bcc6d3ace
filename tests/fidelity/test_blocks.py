"""Block by block, both models compute what they compute whole, and only one block of them is ever there."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mopeq_hub import MopeqError
from mopeq_hub.calibration import load
from mopeq_hub.experts import Matrix
from mopeq_hub.fidelity import worker
from mopeq_hub.fidelity.blocks import BlockPass
from mopeq_hub.fidelity.by_blocks import original_of
from mopeq_hub.fidelity.logits import forward
from mopeq_hub.fidelity.metrics import Comparison
from mopeq_hub.fidelity.staged import StagedModel, State
from mopeq_hub.fidelity.stages import Item, key_of, place_of
from mopeq_hub.model import Model, open_model
from mopeq_hub.questions import Question
from mopeq_hub.questions.inputs import Encoder, Row
from tests import tiny
from tests.conftest import edit_json

Offer = tuple[Item, torch.Tensor, torch.Tensor | None]
IMAGES = tiny.SHAPES / "images"
QUESTIONS = [
    Question(IMAGES / "eval-002.png", "how many cyan shapes are there ?", "one"),
    Question(None, "hello there how are you ?", "two one"),
    Question(IMAGES / "calibration-005.png", "how many red shapes are there ?", "two"),
    Question(IMAGES / "eval-002.png", "which ?", "the cyan one one"),
]


def shapes(folder: Path) -> Path:
    return tiny.SHAPES


def tied(folder: Path) -> Path:
    """Qwen3-VL-MoE whose head is the embedding: its file holds one tensor for both."""
    tiny.qwen3_vl_moe(folder)
    for change in (lambda config: config, lambda config: config["text_config"]):
        edit_json(folder / "config.json", lambda config, of=change: of(config).update(tie_word_embeddings=True))  # type: ignore[misc]
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


FAMILIES = [
    pytest.param(shapes, id="llava over qwen3_moe"),
    pytest.param(tiny.llava_over_deepseek_v2, id="llava over deepseek_v2"),
    pytest.param(tiny.qwen3_vl_moe, id="qwen3_vl_moe"),
    pytest.param(tied, id="qwen3_vl_moe, tied head"),
]


def coarse(weight: torch.Tensor) -> torch.Tensor:
    """Stands for what a packed weight means."""
    return (weight.float() * 16).round() / 16


def offers(model: Model) -> Iterator[Offer]:
    """Every tensor as a stream would offer it, in the order of the files."""
    for matrix in model.layout.matrices:
        weight = original_of(model.checkpoint, matrix)
        yield matrix, weight, coarse(weight)
    for live, kept in model.layout.kept.items():
        yield live, original_of(model.checkpoint, kept), None


def in_order(blocks: BlockPass, model: Model) -> list[Offer]:
    """The same, part by part."""
    of = {key_of(offer[0]): offer for offer in offers(model)}
    return [of[key_of(item)] for stage in blocks.stages for item in stage.items]


def whole(model: Model, folder: Path, rows: list[Row]) -> dict[str, Any]:
    """The figures of the two models loaded whole, in float32."""
    loaded = load({"folder": folder, "auto_class": model.layout.auto_class})
    original = {row.number: logits for row, logits in forward(loaded, rows)}
    parameters = dict(loaded.named_parameters())
    with torch.no_grad():
        for item, _, published in offers(model):
            if isinstance(item, Matrix) and published is not None:
                place = place_of(item, model.layout)
                parameter = parameters[place.parameter]
                place.part(parameter).copy_(published)
    comparison = Comparison(rows)
    for row, logits in forward(loaded, rows):
        comparison.add(row, original[row.number], logits)
    return comparison.result()


@pytest.mark.parametrize("make", FAMILIES)
def test_tensors_in_any_order_give_the_figures_of_the_whole_models(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    folder = make(tmp_path / "model")
    model = open_model(str(folder))
    rows = Encoder(folder).rows(QUESTIONS, with_answer=True)
    blocks = BlockPass(model, rows, "float32")
    shuffled = list(offers(model))
    random.Random(0).shuffle(shuffled)
    for offer in shuffled:
        assert blocks.wants(offer[0])
        blocks.offer(*offer)
    assert blocks.result() == pytest.approx(whole(model, folder, rows), abs=1e-6)
    assert blocks.result()["kl_mean"] > 1e-4
    assert len(blocks.errors) == model.layout.layer_count
    assert all(0 < error < 1 for error in blocks.errors)
    assert (blocks.held, blocks.held_bytes) == ([], 0)


@pytest.mark.parametrize("make", FAMILIES)
def test_the_original_is_computed_to_the_bit(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    model = open_model(str(folder))
    rows = Encoder(folder).rows(QUESTIONS, with_answer=True)
    blocks = BlockPass(model, rows, "bfloat16")
    for item, original, _ in offers(model):
        blocks.offer(item, original)
    result = blocks.result()
    assert (result["kl_mean"], result["top1_agreement"], set(blocks.errors)) == (0.0, 1.0, {0.0})
    loaded = worker.load(folder, {"role": "original", "auto_class": model.layout.auto_class, "dtype": "bfloat16"})[0]
    comparison = Comparison(rows)
    for row, logits in forward(loaded, rows):
        comparison.add(row, logits, logits)
    assert result["loss"] == comparison.result()["loss"]


def test_one_block_is_in_place_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(str(tiny.qwen3_vl_moe(tmp_path / "model")))
    rows = Encoder(tmp_path / "model").rows(QUESTIONS, with_answer=True)
    in_place: list[list[str]] = []
    run = StagedModel.layer

    def watched(staged: StagedModel, *arguments: Any) -> State:
        parts = {
            "before": staged.before,
            **{f"layer {n}": names for n, names in enumerate(staged.layers)},
            "after": staged.after,
        }
        now = {name for name, value in staged._model.state_dict(keep_vars=True).items() if not value.is_meta}
        in_place.append([part for part, names in parts.items() if now & set(names)])
        return run(staged, *arguments)

    monkeypatch.setattr(StagedModel, "layer", watched)
    blocks = BlockPass(model, rows, "float32")
    largest = 0
    for offer in in_order(blocks, model):
        blocks.offer(*offer)
        largest = max(largest, blocks.held_bytes)
    assert {tuple(parts) for parts in in_place} == {("layer 0",), ("layer 1",)}
    layer = sum(
        value.numel()
        for name, value in load_file(tmp_path / "model" / "model.safetensors").items()
        if ".layers.0." in name
    )
    assert 4 * layer < largest <= 2 * 4 * layer


@pytest.mark.parametrize("share", [0.0, 0.1, 0.45, 0.7, 0.99, 1.0])
def test_a_killed_run_goes_on_to_the_very_same_figures(share: float, tmp_path: Path) -> None:
    model = open_model(str(tied(tmp_path / "model")))
    rows = Encoder(tmp_path / "model").rows(QUESTIONS, with_answer=True)
    undisturbed, killed, heir = (BlockPass(model, rows, "float32") for _ in range(3))
    order = in_order(undisturbed, model)
    for offer in order:
        undisturbed.offer(*offer)
    assert not heir.resume(tmp_path / "kept")
    for number, offer in enumerate(order):
        if number in (len(order) // 20, int(share * len(order))):
            killed.save(tmp_path / "kept")
        if number == int(share * len(order)):
            break
        killed.offer(*offer)
    killed.save(tmp_path / "kept")
    assert heir.resume(tmp_path / "kept")
    assert heir.held_bytes == killed.held_bytes
    wanted = [offer for offer in order if heir.wants(offer[0])]
    assert len(wanted) <= len(order) - int(share * len(order))
    for offer in wanted:
        heir.offer(*offer)
    assert (heir.result(), heir.errors) == (undisturbed.result(), undisturbed.errors)


def test_what_was_kept_of_another_measurement_is_not_taken_up(tmp_path: Path) -> None:
    model = open_model(str(tiny.SHAPES))
    rows = Encoder(tiny.SHAPES).rows(QUESTIONS, with_answer=True)
    BlockPass(model, rows, "float32").save(tmp_path)
    assert not BlockPass(model, rows[:2], "float32").resume(tmp_path)
    assert not BlockPass(model, rows, "bfloat16").resume(tmp_path)
    next(tmp_path.glob("*.safetensors")).write_bytes(b"cut short")
    with pytest.raises(MopeqError, match="delete that folder"):
        BlockPass(model, rows, "float32").resume(tmp_path)


def test_a_fault_comes_out_as_it_is_and_leaves_no_weights_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = open_model(str(tiny.SHAPES))
    blocks = BlockPass(model, Encoder(tiny.SHAPES).rows(QUESTIONS, with_answer=True), "float32")
    with pytest.raises(ValueError, match="before still lacks 44 tensors"):
        blocks.result()
    *_, head = (order := in_order(blocks, model))

    def fail(*_: Any) -> None:
        raise ArithmeticError("no such logits")

    monkeypatch.setattr(StagedModel, "logits", fail)
    for offer in order[:-1]:
        blocks.offer(*offer)
    with pytest.raises(ArithmeticError, match="no such logits"):
        blocks.offer(*head)
    assert all(value.is_meta for value in blocks._staged._model.state_dict().values())
