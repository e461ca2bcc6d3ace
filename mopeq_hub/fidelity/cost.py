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
        flops=2 * MODELS * tokens * active_weights(model),
        hidden_bytes=_STATES * tokens * width * item_bytes,
        block_bytes=item_bytes * _largest_part(model),
    )


def stored_dtype(model: Model) -> str:
    """The dtype, by its name in torch, that most weights are stored in and plain `from_pretrained` computes in; of a
    model with float8 ones, that of the others."""
    stored = dict.fromkeys(_TORCH_NAMES, 0)
    for info in model.checkpoint.tensors.values():
        if info.dtype in stored:
            stored[info.dtype] += info.nbytes
    return _TORCH_NAMES[max(stored, key=lambda name: stored[name])]


def active_weights(model: Model) -> int:
    """Weights that one token is multiplied with."""
    layout = model.layout
    routed = {matrix.source for matrix in layout.matrices if matrix.expert is not None}
    others = {matrix.source for matrix in layout.rest} | _kept_sources(model)
    outside, inside = (
        sum(math.prod(model.checkpoint.tensors[name].shape) for name in names) for names in (others, routed)
    )
    experts = len(layout.experts) // len(layout.modules_of)
    return outside + inside * layout.experts_per_token // experts


def _largest_part(model: Model) -> int:
    """Weights of the largest decoder layer, its matrices twice, or of all that is outside the layers, if that is
    more."""
    outside, layers = 0, [0] * model.layout.layer_count
    kept = _kept_sources(model)
    twice = {matrix.source for matrix in model.layout.matrices}
    for name, info in model.checkpoint.tensors.items():
        count = math.prod(info.shape) * (2 if name in twice else 1)
        if name in model.layout.layer_of:
            layers[model.layout.layer_of[name]] += count
        elif name in kept:
            outside += count
    return max(outside, *layers)


def _kept_sources(model: Model) -> set[str]:
    """Tensors of the files that answers take and that are published as they are."""
    return {source for kept in model.layout.answering.values() for source in kept.sources}


def _tokens(question: Question, config: dict[str, Any]) -> int:
    text = len(f"{question.text}{question.answer}".encode()) // _BYTES_PER_TOKEN
    return _TEMPLATE_TOKENS + text + (_picture_tokens(question, config) if question.image else 0)


def _picture_tokens(question: Question, config: dict[str, Any]) -> int:
    """Places that a picture takes among the tokens, by the patches of the vision part."""
    from PIL import Image

    if "image_seq_length" in config:
        return int(config["image_seq_length"])
    vision = config.get("thinker_config", config).get("vision_config") or {}
    side = int(vision.get("patch_size", 14)) * int(vision.get("spatial_merge_size", 1))
    if "image_size" in vision:
        return (int(vision["image_size"]) // side) ** 2
    assert question.image is not None
    with Image.open(question.image) as picture:
        return math.prod(math.ceil(length / side) for length in picture.size)
