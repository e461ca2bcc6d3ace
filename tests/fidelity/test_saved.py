"""What is kept comes back as it was, and a write that was cut off leaves what was there before."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mopeq_hub import MopeqError
from mopeq_hub.fidelity import saved


def test_every_kind_of_value_comes_back(tmp_path: Path) -> None:
    whole = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    state: dict[str, Any] = {
        "views": [whole, whole.T, whole[1:], torch.arange(3).view(1, 3).expand(4, 3)],
        "plain": (None, True, 3, 0.1, "text", torch.tensor(True)),
        "nested": {"same": whole, "empty": torch.empty(0, 2)},
    }
    saved.write(tmp_path, state)
    found = saved.read(tmp_path)
    assert found is not None
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found["views"], state["views"], strict=True))
    assert found["plain"][:-1] == (None, True, 3, 0.1, "text")
    assert found["views"][0].dtype == torch.bfloat16
    assert found["nested"]["same"] is found["views"][0], "what is shared stays shared"
    assert found["nested"]["empty"].shape == (0, 2)


def test_a_write_that_is_cut_off_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saved.read(tmp_path) is None
    saved.write(tmp_path, {"layer": torch.tensor(1)})

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            saved.write(tmp_path, {"layer": torch.tensor(2)})
    assert saved.read(tmp_path) == {"layer": torch.tensor(1)}
    saved.write(tmp_path, {"layer": torch.tensor(3)})
    assert saved.read(tmp_path) == {"layer": torch.tensor(3)}
    assert len(list(tmp_path.iterdir())) == 2, "nothing of earlier writes is left"


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    with pytest.raises(MopeqError, match="a slice, which cannot be kept"):
        saved.write(tmp_path, {"cache": slice(3)})
