"""MolmoE's processor: text and pictures to what the model takes.

A prompt is `<|endoftext|>`, the pictures' tokens, then ` User: ... Assistant:`. A picture's tokens are those of the
whole and those of its crops put together again: rows of `<im_patch>`, each ended by `<im_col>`, between `<im_start>`
and `<im_end>`.
"""

from typing import Any

import numpy as np
from transformers import AutoTokenizer
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .image_processing_molmoe import Crops, MolmoImageProcessor

IMAGE = "<|image|>"
"""Where in a prompt a picture comes."""
_SPECIAL = ("<im_patch>", "<im_start>", "<im_end>", "<im_col>")
_TEMPLATE = (
    "{{ bos_token or eos_token }}"
    "{% for message in messages if message.content is not string %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<|image|>{% endif %}{% endfor %}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %} {% else %} User: {% endif %}"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content if part.type == 'text' %}{{ part.text }}{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% else %} Assistant:{% endif %}"
    "{% endfor %}"
)
_NESTED = ("text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs", "common_kwargs")


class MolmoProcessor(ProcessorMixin):
    """Image processor and tokenizer; `image_token` marks where in a prompt a picture comes.

    Its name is the one that the Hub repo's processor_config.json has, by which AutoProcessor finds it.
    """

    image_token = IMAGE

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template or _TEMPLATE)

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Nothing to check: the image processor is a class of its own, which no registry need know."""
        return type(argument)

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: Any, processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        # Directly, not by registry: the Hub repo's preprocessor_config.json names classes of code that travels with it.
        settings = {name: value for name, value in kwargs.items() if name != "trust_remote_code"}
        pictures = MolmoImageProcessor.from_pretrained(pretrained_model_name_or_path, **settings)
        return [pictures, AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **kwargs)]

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        message_format: str | None = "role",
        always_start_with_space: bool = True,
        padding: bool | str = True,
        padding_side: str = "left",
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """`input_ids` and `attention_mask` [rows, length]; with pictures also `pixel_values` [rows, crops, patches,
        pixels], `image_masks` [rows, crops, patches] and `image_input_idx` [rows, crops, pooled patches].

        text: what is asked, which becomes a prompt as `message_format` says (`role`, or None for as it is); or a prompt
        as the chat template writes it, known by its beginning. Pictures come where it says `<|image|>`, else at its
        start.
        images: one picture, a list of pictures (of the one text, or one for each text), or a list of lists of them.
        padding: False where rows are to stay as long as they are.
        Raises ValueError where pictures and texts do not go together, or the tokenizer lacks a token.
        """
        for nested in _NESTED:
            options = kwargs.pop(nested, None) or {}
            return_tensors = options.get("return_tensors", return_tensors)
            padding, padding_side = options.get("padding", padding), options.get("padding_side", padding_side)
        texts = [text] if isinstance(text, str) else list(text or [""])
        pictures = _by_row(images, len(texts))
        rows = [
            self._row(self._prompt(asked, message_format, always_start_with_space), seen)
            for asked, seen in zip(texts, pictures, strict=True)
        ]
        return BatchFeature(self._batch(rows, padding not in (False, "do_not_pad"), padding_side), return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "image_masks", "image_input_idx"]

    def _first(self) -> tuple[int, str]:
        """Id and text of what every prompt begins with."""
        number = self.tokenizer.bos_token_id or self.tokenizer.eos_token_id
        if number is None:
            raise ValueError("this tokenizer has neither a BOS nor an EOS token, with which MolmoE's prompts begin")
        return number, str(self.tokenizer.convert_ids_to_tokens(number))

    def _prompt(self, asked: str, message_format: str | None, spaced: bool) -> str:
        first = self._first()[1]
        if asked.startswith(first):
            return asked.removeprefix(first)
        if IMAGE in asked or message_format in (None, "none"):
            return asked
        if message_format != "role":
            raise ValueError(f"message_format is 'role' or None, not {message_format!r}")
        return f"{' ' if spaced else ''}User: {asked} Assistant:"

    def _row(self, prompt: str, images: list[Any]) -> dict[str, np.ndarray]:
        """One text with its pictures: ids, and pixels, masks and places where there are pictures."""
        parts = prompt.split(IMAGE)
        if len(parts) == 1:
            parts = [*[""] * len(images), prompt]
        if len(parts) != len(images) + 1:
            raise ValueError(f"{len(images)} pictures do not go with {len(parts) - 1} {IMAGE} in the text")
        ids, cut, places = [self._first()[0]], [], []
        for part, image in zip(parts, [*images, None], strict=True):
            ids += self.tokenizer.encode(part, add_special_tokens=False) if part else []
            if image is not None:
                crops = self.image_processor.crops(image)
                tokens, positions = self._tokens(crops)
                places.append(np.where(crops.places < 0, -100, positions[crops.places] + len(ids)))
                cut.append(crops)
                ids += tokens
        row = {"input_ids": np.array(ids, np.int64)}
        if cut:
            row["pixel_values"] = np.concatenate([crops.pixels for crops in cut])
            row["image_masks"] = np.concatenate([crops.masks for crops in cut])
            row["image_input_idx"] = np.concatenate(places).astype(np.int64)
            if not self.image_processor.image_padding_mask:
                del row["image_masks"]
        return row

    def _tokens(self, crops: Crops) -> tuple[list[int], np.ndarray]:
        """A picture's tokens, and the positions of its patches among them."""
        patch, start, end, column = (self._id(token) for token in _SPECIAL)
        tokens: list[int] = []
        for rows, columns in (self.image_processor.tokens, crops.grid):
            tokens += [start, *([patch] * columns + [column]) * rows, end]
        return tokens, np.flatnonzero(np.array(tokens) == patch)

    def _id(self, token: str) -> int:
        number = self.tokenizer.convert_tokens_to_ids(token)
        if number is None or number == self.tokenizer.unk_token_id:
            raise ValueError(f"this tokenizer lacks {token}, so it is not MolmoE's")
        return int(number)

    def _batch(self, rows: list[dict[str, np.ndarray]], padded: bool, side: str) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in rows)
        if not padded and any(len(row["input_ids"]) != longest for row in rows):
            raise ValueError("texts of different lengths make no batch without padding")
        pad = self.tokenizer.pad_token_id
        pad = self._first()[0] if pad is None else pad
        data: dict[str, Any] = {"input_ids": np.full((len(rows), longest), pad, np.int64)}
        data["attention_mask"] = np.zeros((len(rows), longest), np.int64)
        for number, row in enumerate(rows):
            missing = longest - len(row["input_ids"])
            at = slice(missing, longest) if side == "left" else slice(0, longest - missing)
            data["input_ids"][number, at], data["attention_mask"][number, at] = row["input_ids"], 1
            if "image_input_idx" in row and side == "left":
                row["image_input_idx"] = np.where(row["image_input_idx"] < 0, -100, row["image_input_idx"] + missing)
        empty = {"pixel_values": -1, "image_masks": -1, "image_input_idx": -100}
        for name, filling in empty.items():
            given = [row[name] for row in rows if name in row]
            if given:
                most = max(len(each) for each in given)
                stacked = np.full((len(rows), most, *given[0].shape[1:]), filling, given[0].dtype)
                for number, row in enumerate(rows):
                    if name in row:
                        stacked[number, : len(row[name])] = row[name]
                data[name] = stacked
        return data


def _by_row(images: Any, rows: int) -> list[list[Any]]:
    """The pictures of each text."""
    if images is None or (isinstance(images, list | tuple) and not images):
        return [[] for _ in range(rows)]
    if not isinstance(images, list | tuple):
        images = [images]
    if all(isinstance(each, list | tuple) for each in images):
        given = [list(each) for each in images]
    elif rows == 1:
        given = [list(images)]
    else:
        given = [[each] for each in images]
    if len(given) != rows:
        raise ValueError(f"pictures are given for {len(given)} texts, but there are {rows}")
    return given


__all__ = ["MolmoProcessor"]
