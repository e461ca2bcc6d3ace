"""DeepSeek-VL2's processor: pictures as a global view and tiles, conversations in the format the model was trained on.

By PIL and numpy alone. This file needs nothing but transformers, so that it can lie in a model's repo and be loaded
from there.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from transformers.configuration_utils import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_transforms import to_pil_image
from transformers.image_utils import load_image
from transformers.processing_utils import ProcessorMixin

from .configuration_deepseek_vl2 import trouble_with

USER, ASSISTANT = "<|User|>", "<|Assistant|>"
_GROUNDING = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>")
_TURN = re.compile(rf"(?=<\|User\|>: )|(?<={re.escape(ASSISTANT)}:)")
"""Where turns begin and end; the original tokenizes each by itself."""

MOST_TILED = 2
"""Pictures of a conversation that are tiled; where there are more, each is its global view and that once more."""

CHAT_TEMPLATE = """\
{%- macro said(message) -%}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{- 'IMAGE_TOKEN\\n' -}}{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{{- bos_token -}}
{%- for message in messages -%}
{%- set content = said(message) | trim -%}
{%- if message.role in ('user', '<|User|>') -%}
{{- '<|User|>: ' + content + '\\n\\n' -}}
{%- elif message.role in ('assistant', '<|Assistant|>') -%}
{{- '<|Assistant|>:' + content -}}
{%- if content or not loop.last -%}{{- eos_token -}}{%- endif -%}
{%- else -%}{{- content -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|Assistant|>:' -}}{%- endif -%}"""


def best_resolution(size: tuple[int, int], candidates: Sequence[Sequence[int]]) -> tuple[int, int]:
    """Of the candidates (width, height) the one that keeps most of a picture's pixels, then the one that wastes least.

    The first of those that are alike.
    """

    def merit(candidate: Sequence[int]) -> tuple[int, int]:
        scale = min(candidate[0] / size[0], candidate[1] / size[1])
        effective = min(int(size[0] * scale) * int(size[1] * scale), size[0] * size[1])
        return effective, effective - candidate[0] * candidate[1]

    best = max(candidates, key=merit)
    return best[0], best[1]


class DeepseekVLV2Processor(ProcessorMixin):
    """Texts and pictures to what the model takes; settings as in the repos' processor_config.json.

    Gives `input_ids`, `attention_mask` and `images_seq_mask` [batch, tokens], rows padded on the left; `pixel_values`
    [batch, tiles, 3, side, side], float32; `images_spatial_crop` [batch, pictures, 2], tiles across and down. Both are
    padded with 0, and are nothing else where a batch has no picture.
    """

    def __init__(
        self,
        tokenizer: Any,
        candidate_resolutions: Sequence[Sequence[int]] = ((384, 384),),
        patch_size: int = 14,
        downsample_ratio: int = 2,
        image_mean: Sequence[float] = (0.5, 0.5, 0.5),
        image_std: Sequence[float] = (0.5, 0.5, 0.5),
        normalize: bool = True,
        image_token: str = "<image>",
        pad_token: str = "<｜▁pad▁｜>",
        add_special_token: bool = False,
        sft_format: str = "deepseek",
        mask_prompt: bool = False,
        ignore_id: int = -100,
        chat_template: str | None = None,
    ) -> None:
        super().__init__(tokenizer, chat_template=chat_template or CHAT_TEMPLATE.replace("IMAGE_TOKEN", image_token))
        self.candidate_resolutions = [list(candidate) for candidate in candidate_resolutions]
        self.patch_size, self.downsample_ratio = patch_size, downsample_ratio
        self.image_mean, self.image_std, self.normalize = list(image_mean), list(image_std), normalize
        self.image_token, self.pad_token = image_token, pad_token
        # Kept for whoever reads them of the file: nothing here depends on them.
        self.add_special_token, self.sft_format = add_special_token, sft_format
        self.mask_prompt, self.ignore_id = mask_prompt, ignore_id
        tokenizer.padding_side = "left"
        if tokenizer.pad_token is None:
            tokenizer.add_special_tokens({"pad_token": pad_token})
        # The order is the original's: it gives the tokens that a tokenizer lacks their numbers.
        for tokens in ([image_token], [*_GROUNDING], [USER, ASSISTANT]):
            tokenizer.add_tokens(tokens, special_tokens=True)
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> "DeepseekVLV2Processor":
        """Raises ValueError where the config.json beside it says that the model is another that names this class."""
        where = {
            name: kwargs[name] for name in ("revision", "token", "cache_dir", "local_files_only") if name in kwargs
        }
        try:
            config, _ = PreTrainedConfig.get_config_dict(pretrained_model_name_or_path, **where)
        except OSError:
            config = {}
        if config and (trouble := trouble_with(config)):
            raise ValueError(trouble)
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @property
    def image_size(self) -> int:
        """Pixels along each side of a tile."""
        return self.candidate_resolutions[0][0]

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values", "images_seq_mask", "images_spatial_crop"]

    def __call__(
        self,
        images: Any = None,
        text: str | list[str] | None = None,
        conversations: list[dict[str, Any]] | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Model inputs of one text or several, in which `image_token` stands for each picture.

        images: one; those of all texts in order; or a list for each text. conversations: in place of text, messages as
        the original takes them. add_special_tokens: put the token of the beginning before a text that lacks it.
        Raises ValueError where texts and pictures do not match.
        """
        if kwargs.get("videos") is not None or kwargs.get("audio") is not None:
            raise ValueError("DeepSeek-VL2 takes pictures and text, neither videos nor sound")
        if (text is None) == (conversations is None):
            raise ValueError("give either text or conversations")
        if conversations is not None:
            text = self.apply_chat_template(conversations).removesuffix(self.tokenizer.eos_token)
            images = images or [picture for message in conversations for picture in message.get("images") or []]
        texts = [text] if isinstance(text, str) else list(text or [])
        bos = self.tokenizer.bos_token
        if add_special_tokens and bos:
            texts = [each if each.startswith(bos) else bos + each for each in texts]
        rows = [self._row(*each) for each in zip(texts, self._dealt(texts, images), strict=True)]
        return BatchFeature(self._padded(rows), tensor_type=return_tensors)

    def _dealt(self, texts: list[str], images: Any) -> list[list[Any]]:
        """The pictures of each text."""
        counts = [text.count(self.image_token) for text in texts]
        given = images if isinstance(images, list | tuple) else [] if images is None else [images]
        nested = bool(given) and all(isinstance(each, list | tuple) for each in given)
        flat = [picture for each in given for picture in each] if nested else list(given)
        lengths = [len(each) for each in given] if nested else counts
        if lengths != counts or len(flat) != sum(counts):
            raise ValueError(f"texts have {counts} times {self.image_token!r}, but there are {len(flat)} pictures")
        return [flat[sum(counts[:number]) : sum(counts[: number + 1])] for number in range(len(texts))]

    def _row(self, text: str, images: list[Any]) -> dict[str, list[Any]]:
        """One row without padding."""
        row: dict[str, list[Any]] = {"ids": [], "seen": [], "tiles": [], "crops": []}

        def add(ids: list[int], seen: bool) -> None:
            row["ids"] += ids
            row["seen"] += [seen] * len(ids)

        before, *rest = text.split(self.image_token)
        add(self._tokens(before), False)
        for picture, after in zip(images, rest, strict=True):
            tiles, across, down = self._tiles(_opened(picture), len(images) <= MOST_TILED)
            row["tiles"] += tiles
            row["crops"].append([across, down])
            add([self.image_token_id] * self._positions(across, down), True)
            add(self._tokens(after), False)
        return row

    def _tokens(self, text: str) -> list[int]:
        pieces = [piece for piece in _TURN.split(text) if piece]
        return [token for piece in pieces for token in self.tokenizer.encode(piece, add_special_tokens=False)]

    def _positions(self, across: int, down: int) -> int:
        """Tokens that a picture takes: global view, separator, tiles; each row of tokens with a newline."""
        side = -(-(self.image_size // self.patch_size) // self.downsample_ratio)
        return side * (side + 1) + 1 + down * side * (across * side + 1)

    def _tiles(self, picture: Image.Image, tiled: bool) -> tuple[list[np.ndarray], int, int]:
        """A picture's global view and its tiles, row by row; how many are across and down."""
        side = self.image_size
        width, height = best_resolution(picture.size, self.candidate_resolutions) if tiled else (side, side)
        local = self._fitted(picture, width, height)
        boxes = [(x, y, x + side, y + side) for y in range(0, height, side) for x in range(0, width, side)]
        views = [self._fitted(picture, side, side), *(local.crop(box) for box in boxes)]
        return [self._numbers(view) for view in views], width // side, height // side

    def _fitted(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        """The picture in the middle of one of this size, padded with the mean colour, as PIL's ImageOps.pad does it."""
        ratio, wanted = picture.width / picture.height, width / height
        size = (width, height)
        if ratio > wanted:
            size = (width, max(1, round(picture.height / picture.width * width)))
        elif ratio < wanted:
            size = (max(1, round(picture.width / picture.height * height)), height)
        canvas = Image.new("RGB", (width, height), tuple(int(each * 255) for each in self.image_mean))
        canvas.paste(_resized(picture, size), (round((width - size[0]) * 0.5), round((height - size[1]) * 0.5)))
        return canvas

    def _numbers(self, view: Image.Image) -> np.ndarray:
        """A view as float32 [3, side, side]."""
        numbers = np.asarray(view, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
        if self.normalize:
            mean, std = (np.array(each, dtype=np.float32)[:, None, None] for each in (self.image_mean, self.image_std))
            numbers = (numbers - mean) / std
        return numbers

    def _padded(self, rows: list[dict[str, list[Any]]]) -> dict[str, np.ndarray]:
        """The rows as one batch."""
        tokens, tiles, pictures = (max(1, *(len(row[name]) for row in rows)) for name in ("ids", "tiles", "crops"))
        count, side = len(rows), self.image_size
        batch = {
            "input_ids": np.full((count, tokens), self.tokenizer.pad_token_id, dtype=np.int64),
            "attention_mask": np.zeros((count, tokens), dtype=bool),
            "pixel_values": np.zeros((count, tiles, 3, side, side), dtype=np.float32),
            "images_seq_mask": np.zeros((count, tokens), dtype=bool),
            "images_spatial_crop": np.zeros((count, pictures, 2), dtype=np.int64),
        }
        for number, row in enumerate(rows):
            start = tokens - len(row["ids"])
            batch["input_ids"][number, start:] = row["ids"]
            batch["attention_mask"][number, start:] = True
            batch["images_seq_mask"][number, start:] = row["seen"]
            if row["tiles"]:
                batch["pixel_values"][number, : len(row["tiles"])] = row["tiles"]
                batch["images_spatial_crop"][number, : len(row["crops"])] = row["crops"]
        return batch


def _resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture, bicubic, one axis after the other; PIL rounds in between.

    Which comes first is Pillow 13's rule, with which the original's outputs were made: down first where that takes away
    more than twice as many rows as columns. Any Pillow gives the same bytes so.
    """
    width, height = size
    down_first = picture.height - height > max(0, 2 * (picture.width - width))
    between = (picture.width, height) if down_first else (width, picture.height)
    return picture.resize(between, Image.Resampling.BICUBIC).resize(size, Image.Resampling.BICUBIC)


def _opened(picture: Any) -> Image.Image:
    """A picture, a file, an address or an array of pixels as an RGB picture."""
    if isinstance(picture, str):
        picture = load_image(picture)
    elif not isinstance(picture, Image.Image):
        picture = Image.open(picture) if hasattr(picture, "__fspath__") else to_pil_image(picture)
    return picture.convert("RGB")


__all__ = ["DeepseekVLV2Processor"]
