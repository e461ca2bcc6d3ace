"""Questions and chat messages as a model takes them."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import Encoder, to_generate


@pytest.fixture(scope="module")
def encoder(shapes: Path) -> Encoder:
    return Encoder(shapes)


def test_a_message_asks_what_a_question_of_the_same_picture_and_text_asks(encoder: Encoder, shapes: Path) -> None:
    question = next(item for item in read_questions(shapes / "eval.jsonl").items if item.image)
    [row] = encoder.rows([question], with_answer=False)
    assert question.image is not None
    content = [{"type": "image"}, {"type": "text", "text": question.text}]
    asked = encoder.asked(
        row.number, [{"role": "user", "content": content}], [Image.open(question.image).convert("RGB")]
    )
    assert (asked.number, asked.prompt) == (row.number, row.prompt)
    assert asked.inputs.keys() == row.inputs.keys()
    assert all(torch.equal(asked.inputs[name], row.inputs[name]) for name in asked.inputs)


def test_a_message_may_have_several_pictures_between_its_words(encoder: Encoder) -> None:
    pictures = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    content = [{"type": "image"}, {"type": "text", "text": "or"}, {"type": "image"}, {"type": "text", "text": "?"}]
    inputs = encoder.asked(0, [{"role": "user", "content": content}], pictures).inputs
    token = encoder.tokenizer.convert_tokens_to_ids("<image>")
    places = (inputs["input_ids"][0] == token).nonzero().flatten().tolist()
    one = len(places) // 2
    assert inputs["pixel_values"].shape[0] == 2
    assert places[one - 1] - places[0] == one - 1
    assert places[one] - places[one - 1] > 1


def test_which_tokens_are_a_pictures_is_said_to_a_model_that_asks() -> None:
    class Model:
        dtype, device = torch.float16, "cpu"

        def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor, **others: torch.Tensor) -> None: ...

    class Asking(Model):
        def forward(self, mm_token_type_ids: torch.Tensor, **others: torch.Tensor) -> None: ...  # type: ignore[override]

    inputs = {name: torch.ones(1) for name in ("input_ids", "pixel_values", "mm_token_type_ids")}
    assert set(to_generate(inputs, Asking())) == set(inputs)
    given = to_generate(inputs, Model())
    assert set(given) == {"input_ids", "pixel_values"}
    assert given["pixel_values"].dtype == torch.float16
