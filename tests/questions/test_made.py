"""Questions that nobody wrote: made of the model's words alone, or of parts of given ones; the same for one seed."""

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoTokenizer

from mopeq_hub.questions import Question, read_questions
from mopeq_hub.questions.made import invented, recombined, synthetic_picture


@pytest.fixture(scope="module")
def given(shapes: Path) -> tuple[Question, ...]:
    return read_questions(shapes / "calibration.jsonl").items


def test_invented_questions_are_words_of_the_vocabulary_and_half_have_a_picture(shapes: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shapes)
    made = list(islice(invented(tokenizer, tmp_path, True, 7), 20))
    words = {word for item in made for word in item.text.split()}
    assert words <= set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    assert sum(item.image is not None for item in made) == 10
    assert len({item.text for item in made}) == 20
    again = list(islice(invented(tokenizer, tmp_path, True, 7), 20))
    assert [item.text for item in again] == [item.text for item in made]


def test_a_model_without_eyes_is_shown_nothing(shapes: Path, tmp_path: Path) -> None:
    made = islice(invented(AutoTokenizer.from_pretrained(shapes), tmp_path, False, 0), 10)
    assert all(item.image is None for item in made)
    assert not list(tmp_path.iterdir())


def test_synthetic_pictures_differ_and_use_the_whole_range() -> None:
    one, other = (synthetic_picture(seed) for seed in (1, 2))
    assert one.tobytes() != other.tobytes()
    assert one.tobytes() == synthetic_picture(1).tobytes()
    values = np.asarray(one)
    assert (values.min(), values.max()) == (0, 255)


def test_recombined_questions_go_from_word_to_word_as_the_given_ones(
    given: tuple[Question, ...], tmp_path: Path
) -> None:
    made = list(islice(recombined(given, tmp_path, 3), 60))
    steps = {step for item in given for step in pairwise(item.text.split())}
    assert all(step in steps for item in made for step in pairwise(item.text.split()))
    assert {item.text for item in made} - {item.text for item in given}
    longest = max(len(item.text.split()) for item in given)
    assert all(1 <= len(item.text.split()) <= longest for item in made)


def test_quilted_pictures_are_as_large_as_given_ones_and_new(given: tuple[Question, ...], tmp_path: Path) -> None:
    made = [item for item in islice(recombined(given, tmp_path, 3), 20) if item.image]
    pictures = {Image.open(str(item.image)).tobytes() for item in made}
    assert len(pictures) == len(made) > 0
    size = Image.open(str(next(item.image for item in given if item.image))).size
    assert {Image.open(str(item.image)).size for item in made} == {size}
