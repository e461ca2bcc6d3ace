"""The inputs of every linear layer are summed up as they are, however many layers are looked at together."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mopeq_hub import Recipe, quantize
from mopeq_hub.calibration import Inputs, inputs_of, load
from mopeq_hub.manifest import read_fidelity, read_manifest
from mopeq_hub.model import Model, open_model
from mopeq_hub.pipeline import evaluate
from mopeq_hub.quantization.calibrated import by_layer, hessian_bytes, input_of
from mopeq_hub.quantization.gptq import collect, layers_at_once
from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import Encoder


@pytest.fixture(scope="module")
def model(shapes: Path) -> Model:
    return open_model(str(shapes))


@pytest.fixture(scope="module")
def live(shapes: Path, model: Model) -> Any:
    return load({"folder": str(shapes), "auto_class": model.layout.auto_class})


@pytest.fixture(scope="module")
def inputs(shapes: Path) -> list[Inputs]:
    questions = read_questions(shapes / "calibration.jsonl")
    return inputs_of(Encoder(shapes).rows(list(questions.items[-6:]), with_answer=True))


def test_batches_hold_every_row_once_and_pad_nothing(shapes: Path) -> None:
    rows = Encoder(shapes).rows(list(read_questions(shapes / "calibration.jsonl").items), with_answer=True)
    made = inputs_of(rows)
    given = sorted(tuple(row.inputs["input_ids"][0].tolist()) for row in rows)
    assert sorted(tuple(ids) for batch in made for ids in batch["input_ids"].tolist()) == given
    assert len(made) < len(rows) / 4
    assert any("pixel_values" in batch for batch in made)
    assert any("pixel_values" not in batch for batch in made)


def test_hessians_are_sums_of_inputs_times_inputs(model: Model, live: Any, inputs: list[Inputs]) -> None:
    expert = next(iter(model.layout.experts))
    module = live.get_submodule(model.layout.modules[0].name)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = module.register_forward_pre_hook(lambda _, args: seen.append((args[0].flatten(0, -2), args[1])))
    with torch.no_grad():
        for batch in inputs:
            live(**batch)
    hook.remove()
    mine = torch.cat([states[(chosen.flatten(0, -2) == expert.index).any(-1)] for states, chosen in seen]).double()
    gate, up, down = (torch.from_numpy(matrix.read(model.checkpoint).float32()).double() for matrix in _in_order(model))
    hidden = torch.nn.functional.silu(mine @ gate.T) * (mine @ up.T)

    reached: dict[int, set[int]] = {0: set()}
    hessians = collect(model.layout, live, inputs, [0], reached)
    name = f"{model.layout.modules[0].name}.{expert.index}"
    assert expert.index in reached[0]
    assert torch.allclose(hessians[name].double(), mine.T @ mine, rtol=1e-3, atol=1e-4)
    assert torch.allclose(hessians[f"{name}.down_proj"].double(), hidden.T @ hidden, rtol=1e-3, atol=1e-4)
    assert {input_of(matrix) for matrix in by_layer(model.layout)[0]} >= set(hessians)
    assert down.shape == (mine.shape[1], hidden.shape[1])


def _in_order(model: Model) -> list[Any]:
    projections = {matrix.projection: matrix for matrix in next(iter(model.layout.experts.values()))}
    return [projections[name] for name in ("gate", "up", "down")]


def test_layers_looked_at_together_or_alone_give_the_same(model: Model, live: Any, inputs: list[Inputs]) -> None:
    layers = by_layer(model.layout)
    one = hessian_bytes(layers[0])
    assert list(layers_at_once(layers, 100 * one)) == [[0, 1, 2, 3]]
    assert list(layers_at_once(layers, 2 * one)) == [[0, 1], [2, 3]]
    assert list(layers_at_once(layers, 0)) == [[0], [1], [2], [3]]
    reached: tuple[dict[int, set[int]], ...] = tuple({layer: set() for layer in layers} for _ in range(2))
    whole = collect(model.layout, live, inputs, [0, 1, 2, 3], reached[0])
    parts = {
        name: value
        for layer in layers
        for name, value in collect(model.layout, live, inputs, [layer], reached[1]).items()
    }
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert reached[0] == reached[1]


def test_it_is_closer_to_the_original_than_the_search(
    shapes: Path, published: Path, some_questions: Path, tmp_path: Path
) -> None:
    recipe = Recipe(quantizer="gptq")
    repo = quantize(str(shapes), tmp_path / "repo", recipe, calibration=shapes / "calibration.jsonl")
    ours = evaluate(repo.folder, some_questions, compare=False)
    searched = read_fidelity(published)
    assert searched is not None
    assert read_manifest(published)["experts"] == repo.manifest["experts"]
    assert ours["kl"]["mean"] < 0.9 * searched["kl"]["mean"]
