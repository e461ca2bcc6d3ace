"""The proof measures what it says, on what was loaded, and accepts no weight out of place."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mopeq_hub import MopeqError
from mopeq_hub.errors import UsageError
from mopeq_hub.fidelity.logits import compare, write_logits
from mopeq_hub.fidelity.measure import Way, check_loading, measure, way_of
from mopeq_hub.manifest import read_fidelity, read_manifest
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.questions import Question, read_questions
from mopeq_hub.questions.inputs import Encoder, Row, batches

WHOLE = Way(blocks=False, dtype="float32")


class Fixed:
    """Stands for a model: gives logits made for a test, whatever it is asked."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, table: torch.Tensor) -> None:
        self._table = table

    def forward(self, input_ids: torch.Tensor, **others: Any) -> SimpleNamespace:
        return self(input_ids, **others)

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self._table[input_ids])


def rows() -> list[Row]:
    ids = [[3, 1, 4, 1, 5], [2, 6, 5], [3, 5, 8, 9, 7]]
    return [Row(number, {"input_ids": torch.tensor([row])}, 2) for number, row in enumerate(ids)]


def test_kl_agreement_and_loss_are_those_of_the_definition(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    original, published = (torch.randn(10, 10, generator=generator) for _ in range(2))
    write_logits(Fixed(original), rows(), tmp_path / "logits.npy")
    result = compare(Fixed(published), rows(), tmp_path / "logits.npy")
    before, answers = [1, 4, 1, 6, 5, 8, 9], [4, 1, 5, 5, 8, 9, 7]
    p, q = original[before].double().softmax(-1), published[before].double().softmax(-1)
    divergence = (p * (p / q).log()).sum(-1)
    assert result["tokens"] == 7
    assert result["kl_mean"] == pytest.approx(float(divergence.mean()), rel=1e-6)
    assert result["kl_p99"] == pytest.approx(float(np.quantile(divergence.numpy(), 0.99)), rel=1e-6)
    assert result["top1_agreement"] == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert result["loss"] == pytest.approx(float(-q[range(7), answers].log().mean()), rel=1e-6)
    assert result["original_loss"] == pytest.approx(float(-p[range(7), answers].log().mean()), rel=1e-6)


def test_a_model_does_not_differ_from_itself(tmp_path: Path) -> None:
    table = torch.randn(10, 10, generator=torch.Generator().manual_seed(0))
    write_logits(Fixed(table), rows(), tmp_path / "logits.npy")
    result = compare(Fixed(table), rows(), tmp_path / "logits.npy")
    assert (result["kl_mean"], result["top1_agreement"]) == (0.0, 1.0)


def test_batches_hold_rows_of_one_length_and_lose_none() -> None:
    parts = list(batches(rows()))
    assert sorted(row.number for part, _ in parts for row in part) == [0, 1, 2]
    assert {tuple(inputs["input_ids"].shape) for _, inputs in parts} == {(2, 5), (1, 3)}


def test_the_answer_is_what_follows_the_prompt_of_the_chat_template(shapes: Path) -> None:
    encoder = Encoder(shapes)
    question = Question(shapes / "images" / "eval-002.png", "how many cyan shapes are there ?", "one")
    (row,) = encoder.rows([question], with_answer=True)
    (asked,) = encoder.rows([question], with_answer=False)
    ids = row.inputs["input_ids"][0]
    assert encoder.tokenizer.decode(ids[row.prompt :]).split() == ["one", "</s>"]
    assert ids[: row.prompt].equal(asked.inputs["input_ids"][0])
    assert (ids == 4).sum() == 9, "nine picture tokens"
    assert row.inputs["pixel_values"].shape == (1, 3, 48, 48)


def test_the_bundled_questions_have_pictures_and_answers() -> None:
    questions = read_questions(None)
    assert (questions.name, questions.scored) == ("bundled", False)
    assert 0.5 < sum(item.image is not None for item in questions.items) / len(questions.items) < 1
    assert all(len(item.answer) > 10 for item in questions.items)


def test_bundled_questions_measure_any_model(publication: Path, shapes: Path) -> None:
    model, questions = open_model(str(shapes)), read_questions(None)
    fidelity = measure(model, publication, read_manifest(publication), questions, WHOLE, Quiet())
    assert fidelity["inputs"]["name"] == "bundled"
    assert fidelity["accuracy"] is None
    assert 0 < fidelity["kl"]["mean"] < 0.5


def test_what_was_published_was_measured(published: Path) -> None:
    fidelity = read_fidelity(published)
    assert fidelity is not None
    assert fidelity["inputs"]["questions"] == 48
    assert 0 < fidelity["kl"]["mean"] < 0.01
    assert fidelity["top1_agreement"] > 0.98
    assert fidelity["accuracy"]["original"] > 0.9
    assert fidelity["accuracy"]["published"] > 0.85
    assert fidelity["loading"]["quantized_modules"] == 96 * 3 + 16


def test_the_way_is_the_one_that_memory_allows(shapes: Path) -> None:
    model = open_model(str(shapes))
    needed = next(memory for memory in range(10**9, 10**10, 10**5) if not way_of(model, memory).blocks)
    assert way_of(model, 10**12) == WHOLE
    assert way_of(model, needed) == Way(blocks=False, dtype="bfloat16")
    assert way_of(model, needed - 10**5) == Way(blocks=True, dtype="bfloat16")


def test_rows_are_taken_in_order_up_to_the_limit(shapes: Path) -> None:
    questions, encoder = read_questions(None), Encoder(shapes)
    rows = encoder.rows(questions.items, with_answer=True)
    taken = encoder.rows(questions.items, with_answer=True, limit=rows[0].length + rows[1].length)
    assert [row.inputs["input_ids"].tolist() for row in taken] == [row.inputs["input_ids"].tolist() for row in rows[:2]]
    assert len(encoder.rows(questions.items, with_answer=True, limit=1)) == 1
    with pytest.raises(UsageError, match="negative"):
        read_questions(None, -1)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda loading: loading["missing_keys"].append("lm_head.weight"), "lm_head.weight is not in its files"),
        (lambda loading: loading["unexpected_keys"].extend(["a", "b"]), "a and 1 others are not used"),
        (lambda loading: loading["mismatched_keys"].append("x"), "of another shape"),
        (lambda loading: loading["widths"].pop(next(iter(loading["widths"]))), "16 bits"),
        (lambda loading: loading["widths"].popitem(), "15 of 16 other quantized layers"),
        (lambda loading: loading["widths"].update({"model.language_model.layers.0.other.3": 8}), "other.3 with 8 bits"),
        (lambda loading: loading["widths"].update(dict.fromkeys(loading["widths"], 8)), "with 8 bits"),
    ],
)
def test_no_weight_may_be_out_of_place(damage: Any, words: str, published: Path) -> None:
    manifest = read_manifest(published)
    widths = {
        f"{entry['module']}.{index}.{projection}_proj": bits
        for entry in manifest["experts"]
        for index, bits in enumerate(entry["bits"])
        for projection in ("gate", "up", "down")
    }
    widths |= {f"model.language_model.layers.0.other.{number}": 4 for number in range(manifest["rest"]["quantized"])}
    loading: dict[str, Any] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "widths": widths}
    check_loading(loading, manifest)
    damage(loading)
    with pytest.raises(MopeqError, match=words):
        check_loading(loading, manifest)


def test_a_published_form_that_does_not_load_is_never_called_good(publication: Path, shapes: Path) -> None:
    config = json.loads((publication / "config.json").read_text())
    rules = config["quantization_config"]["extra_config"]
    rules[next(iter(rules))] = {"bits": 8}
    (publication / "config.json").write_text(json.dumps(config))
    with pytest.raises(MopeqError, match="nothing was published"):
        measure(open_model(str(shapes)), publication, read_manifest(publication), read_questions(None), WHOLE, Quiet())
