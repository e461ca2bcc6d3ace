"""What fisher says of a matrix is the divergence that a small change of it makes, to second order, in every form of
experts: in float64, and with changes too small for a router to choose otherwise, where the two must agree."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from mopeq_hub.calibration import Rounded, load
from mopeq_hub.experts import Matrix
from mopeq_hub.fidelity.trial_worker import Bench
from mopeq_hub.model import open_model
from mopeq_hub.questions.inputs import Row, batches
from mopeq_hub.sensitivity import fisher
from mopeq_hub.sensitivity.activity import COLLECTORS
from tests.families.test_every_family import save

JOB = {"group_size": 32, "symmetric": True, "search": True, "seed": 0, "widths": [4], "rest": []}
STEP = 0.001
"""Of the way from a weight to what 4 bits leave of it."""


@pytest.mark.parametrize("name", ["granitemoeshared", "jamba", "mellum", "muse_spark", "step3p7"])
def test_it_is_the_divergence_of_a_small_change(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = Rounded.weight

    def near(self: Rounded, matrix: Matrix, bits: int) -> torch.Tensor:
        own = torch.from_numpy(matrix.read(self._checkpoint).float32()).double()
        return own + STEP * (weight(self, matrix, bits).double() - own)

    monkeypatch.setattr(Rounded, "weight", near)
    monkeypatch.setattr(fisher, "DRAWS", 32)
    model = open_model(str(save(name, tmp_path / "model")))
    job = {"folder": tmp_path / "model", "auto_class": model.layout.auto_class}
    live, changed = (load(job).requires_grad_(False).double() for _ in range(2))
    for each in (live, changed):
        # transformers' fused ways of computing experts know no float64.
        each.set_experts_implementation("eager")
    generator = torch.Generator().manual_seed(0)
    rows = [Row(0, {"input_ids": torch.randint(8, 200, (1, 24), generator=generator)}, 4)]
    collector = COLLECTORS["fisher"](model, live, JOB)
    collector.begin()
    for part, inputs in batches(rows):
        collector.run(part, inputs)
    costs = collector.result()["costs"]
    bench = Bench(model, changed, rows, JOB, tmp_path)
    routed = model.layout.routed
    truth = np.array([bench.measure({matrix.name: 4})["kl_mean"] for matrix in routed])
    found = np.array([costs[matrix.name][0] for matrix in routed])
    reached = truth > 1e-15
    assert reached.sum() >= 8
    assert (found[~reached] < 1e-15).all()
    assert found.sum() == pytest.approx(truth.sum(), rel=0.2)
    assert spearmanr(found[reached], truth[reached])[0] > 0.8
