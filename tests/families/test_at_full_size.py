"""Large models are planned by their config and the headers of their files alone: experts, sizes, no weights."""

from pathlib import Path

import pytest

from mopeq_hub import Recipe, plan
from mopeq_hub.model import open_model
from tests.families.headers import LARGE, headers_of


@pytest.mark.parametrize(
    ("name", "experts", "gigabytes"),
    [
        ("Qwen3-VL-235B-A22B", 94 * 128, 471),
        ("Llama-4-Scout", 48 * 16, 216),
        ("GLM-4.5V", 45 * 128, 208),
        ("ERNIE-4.5-VL-28B", 27 * 128, 58),
        ("DeepSeek-V3", 58 * 256, 1342),
        ("Kimi-K2.5", 60 * 384, 2051),
    ],
)
def test_config_and_headers_are_enough(name: str, experts: int, gigabytes: int, tmp_path: Path) -> None:
    model = open_model(str(headers_of(tmp_path, *LARGE[name])), named=False)
    assert len(model.layout.experts) == experts
    assert not model.layout.ignored
    # That may lie right behind the header, in a block of the disk that was written.
    assert model.checkpoint.is_hole(model.checkpoint.largest.name)
    planned = plan(model, Recipe())
    original, two, three, four = planned.choices
    assert original["bytes"] // 1_000_000_000 == gigabytes
    assert two["bytes"] < three["bytes"] < four["bytes"] < 0.35 * original["bytes"]
    assert [round(each["experts_bpw"], 2) for each in (two, three, four)] == [2.28, 3.3, 4.31]
    assert planned.fidelity is not None
    assert planned.fidelity.tokens > 0
