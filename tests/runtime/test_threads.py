"""Jobs are done by torch's own threads, or by Python's, and can be done again."""

import sys

import pytest
import torch

from mopeq_hub.kernels.jobs import MULTIPLY
from mopeq_hub.runtime import threads
from mopeq_hub.runtime.matrices import Table, runs_of
from mopeq_hub.runtime.threads import Job
from tests.runtime.packed import random_matrix


@pytest.mark.parametrize("own", [True, False], ids=["torch's threads", "Python's threads"])
def test_any_number_of_threads_of_either_kind_gives_the_same(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not own:
        monkeypatch.setattr(threads, "_torchs_threads", lambda: None)
    matrix, _ = random_matrix(768, 2048, 3, 64)
    table, vectors, runs = Table([[matrix]], 768, 2048), torch.randn(3, 2048), torch.tensor(runs_of(0, 0, 3))
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(table.multiply(vectors, runs, 3))
    finally:
        torch.set_num_threads(before)
    assert all(each.equal(found[0]) for each in found)


def test_torchs_own_threads_are_found() -> None:
    if sys.platform == "linux":
        assert threads._torchs_threads() is not None


def test_a_job_begins_anew_each_time() -> None:
    matrix, _ = random_matrix(768, 2048, 3, 64)
    table, vector = Table([[matrix]], 768, 2048), torch.randn(1, 2048, dtype=torch.bfloat16)
    first = table.of_one(vector)
    assert first.any()
    assert table.of_one(-vector).equal(-first)
    assert table.of_one(vector).equal(first)


def test_a_job_has_the_words_of_its_kind_and_no_others() -> None:
    with pytest.raises(KeyError, match="weights"):
        Job(MULTIPLY, 1, weights=0)
    with pytest.raises(KeyError, match="chosen"):
        Job(MULTIPLY, 1).run(chosen=0)
