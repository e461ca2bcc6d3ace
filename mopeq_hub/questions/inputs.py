"""Questions as a model takes them: token ids, pictures, and where the answer's tokens are.

Used with the processor of the folder that is measured. Batches hold rows of one length and one set of inputs, so that
nothing is padded and every family's forward sees what it would see for a single row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from mopeq_hub.errors import MopeqError
from mopeq_hub.questions import Question

MAX_ROWS, MAX_TOKENS = 32, 4096
"""Of a batch; more gain nothing on a CPU and cost memory."""


_DECODER_IDS = "decoder_input_ids"
_PICTURED = "mm_token_type_ids"
"""Of what is made without a processor, the input that not every model knows."""
_SENTINELS = ("<extra_id_0>", "<extra_id_1>")
"""Tokens by which T5's kin name a gap in a text, and what follows that which fills it."""


@dataclass(frozen=True)
class Row:
    """One question: model inputs of a batch of one. Of the tokens `ids` the first `prompt` are given, the rest are the
    answer.

    A decoder is given the question. Where an encoder reads that, the decoder is given the token it begins with.
    """

    number: int
    inputs: dict[str, torch.Tensor]
    prompt: int

    @property
    def ids(self) -> torch.Tensor:
        """What the decoder reads [1, tokens], the answer included."""
        return self.inputs.get(_DECODER_IDS, self.inputs["input_ids"])

    @property
    def length(self) -> int:
        """Tokens that the decoder reads."""
        return self.ids.shape[1]

    @property
    def tokens(self) -> int:
        """Tokens that the model reads."""
        return self.length + (self.inputs["input_ids"].shape[1] if _DECODER_IDS in self.inputs else 0)

    def answered(self, answer: list[int]) -> "Row":
        """The row with these tokens after its own; whatever else there is for each of them is 1 in a mask, else 0."""
        inputs = dict(self.inputs)
        for name, value in self.inputs.items():
            if value is self.ids:
                more = answer
            elif _DECODER_IDS not in self.inputs and value.shape == self.ids.shape:
                more = [int(name == "attention_mask")] * len(answer)
            else:
                continue
            inputs[name] = torch.cat([value, torch.tensor([more], dtype=value.dtype)], dim=1)
        return Row(self.number, inputs, self.length)


class Encoder:
    """Turns questions into rows. Raises ImportError or OSError where the folder has no usable processor."""

    def __init__(self, folder: Path, trusted: bool = False) -> None:
        """trusted: whether code in the folder may be run."""
        from transformers import AutoConfig, AutoImageProcessor, AutoProcessor, AutoTokenizer

        config = AutoConfig.from_pretrained(folder, trust_remote_code=trusted)
        # Of a model of several parts, the one's that is asked.
        self._config = getattr(config, "thinker_config", config)
        # What the decoder's text begins with where an encoder reads the question.
        self._begin = _decoder_start(self._config, folder)
        self._processor: Any = None
        self._images: Any = None
        try:
            processor = AutoProcessor.from_pretrained(folder, trust_remote_code=trusted)
        except (ImportError, ValueError, OSError):
            processor = None
        if hasattr(processor, "tokenizer"):
            self._processor, self.tokenizer = processor, processor.tokenizer
        else:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
            if any((folder / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
                # Processors that own a video processor need torchvision; their picture and text halves do not.
                self._images = AutoImageProcessor.from_pretrained(folder, trust_remote_code=trusted)

    @property
    def takes_pictures(self) -> bool:
        """Whether the model is given pictures too."""
        return self._processor is not None or self._images is not None

    def rows(self, questions: Sequence[Question], with_answer: bool, limit: int = 0) -> list[Row]:
        """One row a question: prompt and answer, or the prompt alone, ready for generation.

        limit: tokens that all rows together may have; the first is taken whatever it has. 0 is no limit.
        """
        rows: list[Row] = []
        tokens = 0
        for number, question in enumerate(questions):
            row = self._row(number, question, with_answer)
            tokens += row.tokens
            if limit and rows and tokens > limit:
                break
            rows.append(row)
        return rows

    def asked(self, number: int, messages: Sequence[dict[str, Any]], pictures: Sequence[Any]) -> Row:
        """The row that asks for the next answer. messages: of `role` and `content`, a list of parts of type `image` or
        `text`; pictures: PIL images in RGB, one for each `image`, in order. Raises ValueError where the model takes
        none."""
        if pictures and not self.takes_pictures:
            raise ValueError("the model takes no pictures")
        prompt = self._rendered(messages)
        if self._begin is not None:
            return self._row_of_two(number, prompt, None)
        inputs = self._encode(prompt, pictures)
        return Row(number, inputs, inputs["input_ids"].shape[1])

    def decode(self, ids: torch.Tensor) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _row(self, number: int, question: Question, with_answer: bool) -> Row:
        from PIL import Image

        pictures = [Image.open(question.image).convert("RGB")] if question.image else []
        prompt, whole = self._texts(question)
        if self._begin is not None:
            return self._row_of_two(number, prompt, whole[len(prompt) :] if with_answer else None)
        inputs = self._encode(prompt, pictures)
        prompt_length = inputs["input_ids"].shape[1]
        if with_answer:
            inputs = self._encode(whole, pictures)
        return Row(number, inputs, prompt_length)

    def _row_of_two(self, number: int, prompt: str, answer: str | None) -> Row:
        """The row of a model whose encoder reads the prompt. Without a template, texts end as its tokenizer ends them.

        A tokenizer that knows gaps is that of a model trained to fill them in, so an answer is asked as a gap's; a
        question that has one itself is taken as it is.
        """
        plain = getattr(self.tokenizer, "chat_template", None) is None
        if plain and _SENTINELS[0] not in prompt and {*_SENTINELS} <= self.tokenizer.get_vocab().keys():
            prompt = f"{prompt} {_SENTINELS[0]}"
            answer = answer and f"{_SENTINELS[0]} {answer} {_SENTINELS[1]}"
        inputs = self._encode(prompt, [], ends=plain)
        row = Row(number, {**inputs, _DECODER_IDS: torch.tensor([[self._begin]])}, 1)
        return row if answer is None else row.answered(self._encode(answer, [], ends=plain)["input_ids"][0].tolist())

    def _texts(self, question: Question) -> tuple[str, str]:
        """The prompt, and the prompt with its answer, by the chat template where there is one."""
        content = [{"type": "text", "text": question.text}]
        if question.image:
            content.insert(0, {"type": "image"})
        asked: list[dict[str, Any]] = [{"role": "user", "content": content}]
        prompt, renderer = self._rendered(asked), self._renderer()
        if renderer is None:
            return prompt, prompt + question.answer
        answered = self._told([*asked, {"role": "assistant", "content": [{"type": "text", "text": question.answer}]}])
        whole = renderer.apply_chat_template(answered, tokenize=False)
        # Templates that rewrite earlier turns once an answer follows would shift the positions that are compared.
        return prompt, whole if whole.startswith(prompt) else prompt + question.answer

    def _renderer(self) -> Any:
        """What has a chat template, or None."""
        renderer = self._processor if getattr(self._processor, "chat_template", None) else self.tokenizer
        return None if getattr(renderer, "chat_template", None) is None else renderer

    def _rendered(self, messages: Sequence[dict[str, Any]]) -> str:
        """The text that asks for the next answer: by the chat template, else pictures and texts as they come."""
        renderer = self._renderer()
        if renderer is not None:
            return str(renderer.apply_chat_template(self._told(messages), add_generation_prompt=True, tokenize=False))
        parts = [part for message in messages for part in message["content"]]
        texts = [self._image_token() if part["type"] == "image" else part["text"] for part in parts]
        return "".join(texts) + ("\n" if self._begin is None else "")

    def _told(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Messages as the template takes them: their content in parts where some may be pictures; templates of models
        of text alone want the text itself."""
        if self.takes_pictures:
            return list(messages)
        return [{**each, "content": "".join(part["text"] for part in each["content"])} for each in messages]

    def _encode(self, text: str, pictures: Sequence[Any], ends: bool = False) -> dict[str, torch.Tensor]:
        """The inputs of a text and its pictures; `ends`: with what the tokenizer puts at the ends of a text."""
        if self._processor is not None and pictures:
            encoded = self._processor(text=text, images=list(pictures), return_tensors="pt", add_special_tokens=False)
        elif pictures:
            encoded = self._encode_in_halves(text, pictures)
        else:
            encoded = self.tokenizer(text, return_tensors="pt", add_special_tokens=ends)
        return {name: value for name, value in encoded.items() if torch.is_tensor(value) and name != "token_type_ids"}

    def _encode_in_halves(self, text: str, pictures: Sequence[Any]) -> dict[str, torch.Tensor]:
        """What the missing processor would do: as many image tokens as each picture has merged patches."""
        pixels = self._images(images=list(pictures), return_tensors="pt")
        token = self._image_token()
        first, *others = text.split(token)
        merged = [int(grid.prod()) // self._images.merge_size**2 for grid in pixels["image_grid_thw"]]
        if len(others) != len(merged):
            raise ValueError(f"{len(merged)} pictures do not go with {len(others)} {token} in the text")
        whole = first + "".join(token * count + part for count, part in zip(merged, others, strict=True))
        encoded = self.tokenizer(whole, return_tensors="pt", add_special_tokens=False)
        kinds = (encoded["input_ids"] == self.tokenizer.convert_tokens_to_ids(token)).int()
        where = {_PICTURED: kinds}
        if self._config.model_type == "ernie4_5_vl_moe":
            # By these it chooses between experts of texts and of pictures, whose beginnings and ends are theirs too.
            marks = [getattr(self._config, f"image_{mark}token_id") for mark in ("", "start_", "end_")]
            where["moe_mm_token_type_ids"] = torch.isin(encoded["input_ids"], torch.tensor(marks)).int()
        return {**encoded, **pixels, **where}

    def _image_token(self) -> str:
        token = getattr(self._processor, "image_token", None) or getattr(self.tokenizer, "image_token", None)
        if token is None:
            number = getattr(self._config, "image_token_id", None)
            token = self.tokenizer.convert_ids_to_tokens(number) if number is not None else "<image>"
        return str(token)


def _decoder_start(config: Any, folder: Path) -> int | None:
    """The token that the text of a decoder beside an encoder begins with; None where there is no encoder.

    Raises MopeqError where the folder names none.
    """
    from transformers import GenerationConfig

    if not getattr(config, "is_encoder_decoder", False):
        return None
    found = getattr(config, "decoder_start_token_id", None)
    if found is None and (folder / "generation_config.json").is_file():
        found = GenerationConfig.from_pretrained(folder).decoder_start_token_id
    if found is None:
        raise MopeqError("config.json names no decoder_start_token_id", "add the token that the decoder begins with")
    return int(found)


def batches(rows: list[Row], most_rows: int = MAX_ROWS) -> Iterator[tuple[list[Row], dict[str, torch.Tensor]]]:
    """Rows of equal length, prompt and shapes of input together, a bounded number of them, with their collated
    inputs."""
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        kinds = tuple(sorted((name, value.shape[1:]) for name, value in row.inputs.items()))
        alike.setdefault((row.length, row.prompt, kinds), []).append(row)
    for same in alike.values():
        count = max(1, min(most_rows, MAX_TOKENS // same[0].tokens))
        for start in range(0, len(same), count):
            part = same[start : start + count]
            yield part, {name: torch.cat([row.inputs[name] for row in part]) for name in part[0].inputs}


def placed(inputs: Mapping[str, Any], dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Inputs where a model is, with their floating-point tensors in its dtype; what is no tensor stays as it is."""
    return {name: _placed(value, dtype, device) if torch.is_tensor(value) else value for name, value in inputs.items()}


def _placed(value: torch.Tensor, dtype: torch.dtype, device: torch.device | str) -> torch.Tensor:
    return value.to(device, dtype if value.is_floating_point() else None)


def to_generate(inputs: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Inputs where a model is, as its `generate` takes them: that refuses what forward would pass over, such as which
    tokens are a picture's."""
    known = signature(model.forward).parameters
    given = {name: value for name, value in inputs.items() if name != _PICTURED or name in known}
    return placed(given, model.dtype, model.device)


def answer_options(model: Any, row: Row) -> dict[str, int]:
    """What to pass to the model's forward so that it computes no logits that nobody looks at, where it can do so.

    A whole vocabulary for every token of the prompt would be most of the memory.
    """
    sparing = "logits_to_keep" in signature(model.forward).parameters
    return {"logits_to_keep": _kept(row)} if sparing else {}


def answer_logits(logits: torch.Tensor, row: Row) -> torch.Tensor:
    """The float32 logits [answer tokens, vocabulary] that predict the answer, of one row's [tokens, vocabulary]."""
    return logits[-_kept(row) : -1].float()


def _kept(row: Row) -> int:
    """Tokens at a row's end from which answer tokens are predicted, and the answer's last, which predicts none."""
    return row.length - row.prompt + 1
