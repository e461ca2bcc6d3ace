"""Signals that run the model: what they count, and that the Fisher-weighted error is the KL it stands for."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mopeq_hub import Recipe, workplace
from mopeq_hub.calibration import chosen_experts, load
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Expert
from mopeq_hub.fidelity.trial_worker import Bench
from mopeq_hub.fidelity.trials import alone
from mopeq_hub.model import Model, open_model
from mopeq_hub.planning import needs_for
from mopeq_hub.profiles import cache_of, profile_of
from mopeq_hub.progress import Quiet
from mopeq_hub.quantization.calibrated import calibrated
from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import Encoder, Row, batches
from mopeq_hub.sensitivity import activity, by_running, fisher
from mopeq_hub.sensitivity.fisher import Collector, _Sums
from mopeq_hub.sensitivity.given import Given

JOB: dict[str, Any] = {"group_size": 64, "symmetric": True, "search": True, "seed": 0, "signal": "fisher"}


@pytest.fixture(scope="module")
def model(shapes: Path) -> Model:
    return open_model(str(shapes))


@pytest.fixture
def live(shapes: Path, model: Model) -> Any:
    return load({"folder": str(shapes), "auto_class": model.layout.auto_class}).requires_grad_(False)


@pytest.fixture(scope="module")
def rows(shapes: Path) -> list[Row]:
    """Six questions, with and without pictures."""
    return Encoder(shapes).rows(read_questions(shapes / "calibration.jsonl").items[:6], with_answer=True)


def test_frequency_is_what_the_router_chose(
    model: Model, live: Any, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_running, "TOKENS", 600)
    calibration = shapes / "calibration.jsonl"
    recipe = calibrated(Recipe(signal="frequency"), calibration)
    profile = profile_of(model, recipe, Quiet(), given=Given(calibration))
    # As many as are expected by chance, on average over a layer.
    assert [sum(row) for row in profile.by_layer().values()] == pytest.approx([24.0] * 4)

    groups = activity.rows_of(model, live, Encoder(shapes), {**JOB, **_inputs(calibration)}, tmp_path)
    shares: dict[Expert, float] = dict.fromkeys(model.layout.experts, 0.0)
    for group in groups:
        counts: Counter[int] = Counter()
        hook = live.get_submodule(model.layout.modules[2].name).register_forward_hook(
            lambda _, args, named, __, counts=counts: counts.update(chosen_experts(args, named, 24).flatten().tolist()),
            with_kwargs=True,
        )
        for _, inputs in batches(group.rows):
            live(**inputs)
        hook.remove()
        for index, count in counts.items():
            shares[Expert(2, index)] += count / sum(counts.values()) * 24 / len(groups)
    ours = {expert: value for expert, value in profile.sensitivities.items() if expert.layer == 2}
    assert ours == pytest.approx({expert: shares[expert] for expert in ours})


def _inputs(calibration: Path | None) -> dict[str, Any]:
    return {"inputs": "calibration" if calibration else "own", "calibration": calibration, "tokens": 600}


def test_the_product_of_signals_has_the_order_of_both(
    model: Model, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_running, "TOKENS", 600)
    recipe, given = (
        calibrated(Recipe(signal="frequency"), shapes / "calibration.jsonl"),
        Given(shapes / "calibration.jsonl"),
    )
    frequency = profile_of(model, recipe, Quiet(), given=given).sensitivities
    hessian = profile_of(model, Recipe(), Quiet()).sensitivities
    product = profile_of(model, replace(recipe, signal="hessian*frequency"), Quiet(), given=given).sensitivities
    ratios = {round(product[each] / (frequency[each] * hessian[each]), 9) for each in product if frequency[each]}
    assert len(ratios) == 1
    assert max(product.values()) <= 1


def test_fisher_is_the_divergence_that_quantizing_one_expert_or_linear_layer_makes(
    model: Model, live: Any, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "DRAWS", 48)
    rest = [[matrix] for matrix in model.layout.rest]
    found = []
    for row in rows[:2]:
        one = replace(row, number=0)
        collector = Collector(model, live, {**JOB, "widths": [4], "rest": [matrix.name for (matrix,) in rest]})
        collector.begin()
        for part, inputs in batches([one]):
            collector.run(part, inputs)
        costs = collector.result()["costs"]
        bench = Bench(model, load(_job(model)), [one], JOB, tmp_path)
        for matrices in [*list(model.layout.experts.values())[::6], *rest]:
            truth = bench.measure(alone(matrices, 4))["kl_mean"]
            found.append((sum(costs[matrix.name][0] for matrix in matrices), truth))
    estimated, measured = np.array(found).T
    reached = measured > 1e-12
    assert (estimated[~reached] < 1e-10).all()
    assert reached.sum() >= 6
    assert spearmanr(estimated[reached], measured[reached])[0] > 0.8
    assert 0.4 < estimated.sum() / measured.sum() < 2.5


def _job(model: Model) -> dict[str, Any]:
    return {"folder": model.source.location, "auto_class": model.layout.auto_class}


def test_a_profile_that_is_kept_is_planned_for_without_running_the_model(model: Model, tmp_path: Path) -> None:
    recipe = Recipe(signal="frequency", seed=77)

    def memory() -> int:
        return needs_for(model, recipe, None, tmp_path, to_hub=False, stream=None).memory

    running = memory()
    assert running == by_running.memory_needed(model, ())
    kept = cache_of(model, recipe)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.touch()
    assert memory() < running
    kept.unlink()


def test_a_row_with_great_damage_counts_less_than_its_share_and_the_sum_stays() -> None:
    sums = _Sums(2, 1)
    sums.add(np.array([[[8.0], [0.0]], [[0.0], [1.0]]], np.float32), tokens=2)
    costs = sums.costs()[:, 0]
    assert costs.sum() == pytest.approx(9 / 4)
    assert costs[0] / costs[1] == pytest.approx(8 ** (1 / 3))


def test_own_inputs_need_no_data_and_are_the_same_every_time(model: Model, live: Any, tmp_path: Path) -> None:
    encoder = Encoder(Path(model.source.location))
    job = {**JOB, **_inputs(None)}
    (one,), (other,) = (activity.rows_of(model, live, encoder, job, tmp_path) for _ in range(2))
    assert 600 <= sum(row.length for row in one.rows) < 700
    ids = [[row.inputs["input_ids"] for row in group.rows] for group in (one, other)]
    assert all(map(torch.equal, *ids))
    assert {"pixel_values" in row.inputs for row in one.rows} == {True, False}
    # The answer is the model's own, up to the end that it gives it.
    assert all(row.prompt < row.length for row in one.rows)


def test_own_questions_are_answered_many_at_a_time_and_are_those_of_a_few_at_a_time(
    model: Model, live: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, real, counted = Encoder(Path(model.source.location)), activity.batches, []

    def batches(rows: list[Row]) -> Any:
        counted.append(len(list(real(rows))))
        return real(rows)

    monkeypatch.setattr(activity, "batches", batches)
    job = {**JOB, **_inputs(None), "tokens": 3000}
    found = []
    for first, most in ((16, 16), (16, 1024)):
        monkeypatch.setattr(activity, "_FIRST", first)
        monkeypatch.setattr(activity, "_MOST", most)
        (group,) = activity.rows_of(model, live, encoder, job, tmp_path)
        found.append((group, sum(counted)))
        counted.clear()
    (few, often), (many, seldom) = found
    assert [row.inputs["input_ids"].tolist() for row in few.rows] == [
        row.inputs["input_ids"].tolist() for row in many.rows
    ]
    assert seldom < often / 2


def test_a_model_that_memory_does_not_hold_is_refused_with_what_to_do(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workplace, "free_memory", lambda: 1_000_000_000)
    with pytest.raises(MopeqError, match=r"--signal fisher runs the model: 1.0 GB .* do not hold") as error:
        by_running.check_memory(model, Recipe(signal="fisher", allocator="knapsack", budget="3bpw"))
    assert "--signal distortion" in str(error.value)


def test_a_calibration_file_makes_itself_the_inputs_of_a_signal_that_runs(shapes: Path) -> None:
    recipe = calibrated(Recipe(signal="fisher"), shapes / "calibration.jsonl")
    assert recipe.inputs == "calibration"
    assert recipe.calibration == read_questions(shapes / "calibration.jsonl").digest
    assert calibrated(Recipe(signal="fisher"), None).inputs == "own"
