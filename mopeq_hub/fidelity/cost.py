"""What measuring block by block will cost, from headers, config and questions alone, before anything is fetched."""

import math
from dataclasses import dataclass
from typing import Any

from mopeq_hub.model import Model
from mopeq_hub.questions import Question, Questions

MODELS = 2
"""That every token goes through: the original and the published one."""
_BYTES_PER_TOKEN = 3
"""Of English text; other languages' tokens are longer in UTF-8, so that this finds too many rather than too few."""
_TEMPLATE_TOKENS = 16
"""Around a question and its answer."""
_STATES = 4
"""Vectors kept for each token: both models' hidden states, what the text model is given, and one copy."""
_TORCH_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Cost:
    """Of one measurement. tokens: that go through each model. flops: of both, all told. hidden_bytes: of the states
    that are kept between blocks. block_bytes: of the largest part of the model, original and published."""

    tokens: int
    flops: int
    hidden_bytes: int
    block_bytes: int

    @property
    def memory(self) -> int:
        """Bytes taken beside torch and transformers themselves."""
        return self.hidden_bytes + self.block_bytes


def estimate(model: Model, questions: Questions) -> Cost:
    """The cost of measuring on these questions, up to their limit.

    Tokens are estimated from the length of texts and the size of pictures. Every weight outside the routed experts
    counts for every token, so the work is overstated by the embeddings and by the head, which sees answers only.
    """
    lengths = [_tokens(item, model.config) for item in questions.items]
    tokens = sum(lengths)
    if questions.limit:
        tokens = min(tokens, max(questions.limit, lengths[0]))
    item_bytes = _ITEM_BYTES[stored_dtype(model)]
    width = next(matrix.shape[1] for matrix in model.layout.routed if matrix.projection != "down")
    return Cost(
        tokens=tokens,
        flops=2 * MODELS * tokens * model.active_weights,
        hidden_bytes=_STATES * tokens * width * item_bytes,
        block_bytes=item_bytes * model.largest_part,
    )


def stored_dtype(model: Model) -> str:
    """The dtype, by its name in torch, that most weights are stored in and plain `from_pretrained` computes in; of a
    model with float8 ones, that of the others."""
    stored = model.checkpoint.bytes_stored_as
    return _TORCH_NAMES[max(_TORCH_NAMES, key=lambda name: stored.get(name, 0))]


def _tokens(question: Question, config: dict[str, Any]) -> int:
    text = len(f"{question.text}{question.answer}".encode()) // _BYTES_PER_TOKEN
    return _TEMPLATE_TOKENS + text + (_picture_tokens(question, config) if question.image else 0)


def _picture_tokens(question: Question, config: dict[str, Any]) -> int:
    """Places that a picture takes among the tokens, by the patches of the vision part."""
    from PIL import Image

    if known := _whole(config, "image_seq_length"):
        return known
    vision = config.get("thinker_config", config).get("vision_config")
    side = (_whole(vision, "patch_size") or 14) * (_whole(vision, "spatial_merge_size") or 1)
    if whole := _whole(vision, "image_size"):
        return (whole // side) ** 2
    assert question.image is not None
    with Image.open(question.image) as picture:
        return math.prod(math.ceil(length / side) for length in picture.size)


def _whole(config: Any, name: str) -> int | None:
    """A number that a config states under this name; configs that come with code may have anything there, or none."""
    found = config.get(name) if isinstance(config, dict) else None
    return found if type(found) is int and found > 0 else None
