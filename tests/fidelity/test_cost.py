"""What a measurement is said to cost before is about what it costs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mopeq_hub.fidelity.blocks import BlockPass
from mopeq_hub.fidelity.cost import estimate, stored_dtype
from mopeq_hub.model import open_model
from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import Encoder
from tests import tiny
from tests.fidelity.test_blocks import in_order, shapes


def test_the_cost_of_the_bundled_model_is_counted_by_hand() -> None:
    model, questions = open_model(str(tiny.SHAPES)), read_questions(None, 1000)
    attention = 128 * (2 * 4 * 32 + 2 * 2 * 32) + 2 * 32
    layer = attention + 2 * 128 + 24 * 128 + 4 * 3 * 128 * 64
    outside = sum(
        info.nbytes // 2 for name, info in model.checkpoint.tensors.items() if name not in model.layout.layer_of
    )
    assert model.active_weights == outside + 4 * layer
    cost = estimate(model, questions)
    assert cost.tokens == 1000
    assert cost.flops == 1000 * (outside + 4 * layer) * 2 * 2
    assert cost.hidden_bytes == 1000 * 128 * 2 * 4
    assert stored_dtype(model) == "bfloat16"


@pytest.mark.parametrize("make", [shapes, tiny.llava_over_deepseek_v2, tiny.qwen3_vl_moe])
def test_neither_memory_nor_tokens_are_understated_by_much(make: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    model, questions = open_model(str(folder)), read_questions(None, 0)
    rows = Encoder(folder).rows(questions.items, with_answer=True)
    cost, tokens = estimate(model, questions), sum(row.length for row in rows)
    assert tokens / 2 < cost.tokens
    blocks = BlockPass(model, rows, stored_dtype(model))
    held = 0
    for offer in in_order(blocks, model):
        blocks.offer(*offer)
        held = max(held, blocks.held_bytes)
    assert 0.8 * held <= cost.block_bytes <= 1.5 * held


def test_a_limit_bounds_it_down_to_one_question() -> None:
    model = open_model(str(tiny.SHAPES))
    least, all_of_it = (estimate(model, read_questions(None, limit)).tokens for limit in (1, 0))
    assert 1 < least < 100
    assert 1100 < all_of_it < 4 * 1100, "the bundled questions come to 1100 tokens of this model"
