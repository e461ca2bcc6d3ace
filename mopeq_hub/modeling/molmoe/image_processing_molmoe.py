"""Pictures as MolmoE sees them: the whole, and overlapping crops of it at a higher resolution, as flat patches.

Crops overlap by a margin that is seen but not kept, so that each kept patch has its surroundings. The arithmetic is the
original's (float32, antialiased bilinear), so that pixels agree to the last digits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.nn import functional as F
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, make_flat_list_of_images

Size = tuple[int, int]


@dataclass(frozen=True)
class Crops:
    """One picture, the whole of it first.

    pixels: float32 [crops, patches, pixels]. masks: float32 [crops, patches], how much of a patch is picture, -1 where
    that is not said. places: int64 [crops, pooled patches], which of the picture's patch tokens each pooled patch is
    added to, -1 where it lies in a margin. grid: rows and columns of patch tokens of all crops together.
    """

    pixels: np.ndarray
    masks: np.ndarray
    places: np.ndarray
    grid: Size


class MolmoImageProcessor(BaseImageProcessor):
    """Made from the Hub repo's preprocessor_config.json.

    max_crops: of one picture, besides the whole. overlap_margins: patches at the left (top) and right (bottom) of a
    crop that are only surroundings. base_image_input_size: height and width of a crop in pixels. image_token_length_w,
    image_token_length_h: pooled patches in a row and in a column of a crop. image_padding_mask: whether there are
    `image_masks`.
    """

    model_input_names = ["pixel_values", "image_masks", "image_input_idx"]

    def __init__(
        self,
        max_crops: int = 12,
        overlap_margins: Any = (4, 4),
        base_image_input_size: Any = (336, 336),
        image_token_length_w: int = 12,
        image_token_length_h: int = 12,
        image_patch_size: int = 14,
        image_padding_mask: bool = True,
        do_normalize: bool = True,
        image_mean: Any = None,
        image_std: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_crops = max_crops
        self.overlap_margins = list(overlap_margins)
        square = isinstance(base_image_input_size, int)
        self.base_image_input_size = [base_image_input_size] * 2 if square else list(base_image_input_size)
        self.image_token_length_w, self.image_token_length_h = image_token_length_w, image_token_length_h
        self.image_patch_size, self.image_padding_mask = image_patch_size, image_padding_mask
        self.do_normalize = do_normalize
        self.image_mean = list(OPENAI_CLIP_MEAN) if image_mean is None else image_mean
        self.image_std = list(OPENAI_CLIP_STD) if image_std is None else image_std

    @property
    def tokens(self) -> Size:
        """Rows and columns of patch tokens of the whole picture, and of a crop."""
        return self.image_token_length_h, self.image_token_length_w

    def crops(self, image: Any) -> Crops:
        """One picture (PIL, or an array [height, width, 3] of 0 to 255) cut up.

        Raises ValueError where the settings do not fit each other.
        """
        array = _array(image)
        patch, (left, right) = self.image_patch_size, self.overlap_margins
        base = (int(self.base_image_input_size[0]), int(self.base_image_input_size[1]))
        patches = (base[0] // patch, base[1] // patch)
        pool = (-(-patches[0] // self.tokens[0]), -(-patches[1] // self.tokens[1]))
        self._check(patches, pool)
        margin = (left + right) * patch
        window = (base[0] - margin, base[1] - margin)
        tiles = _tiling((array.shape[0] - margin, array.shape[1] - margin), window, self.max_crops)
        whole = (tiles[0] * window[0] + margin, tiles[1] * window[1] + margin)
        source, mask = self._resized(array, whole)
        rows = _kept(tiles[0], patches[0], (left, right), pool[0])
        columns = _kept(tiles[1], patches[1], (left, right), pool[1])
        grid = (sum(count for _, count in rows), sum(count for _, count in columns))
        pixels, masks = [_patches(self._resized(array, base)[0], patch)], []
        places = [np.arange(self.tokens[0] * self.tokens[1]).reshape(self.tokens)]
        above = 0
        for row, (top, high) in enumerate(rows):
            before = 0
            for column, (start, wide) in enumerate(columns):
                down, across = row * window[0], column * window[1]
                at = slice(down, down + base[0]), slice(across, across + base[1])
                pixels.append(_patches(source[at], patch))
                masks.append(_patches(mask[at].astype(np.float32)[..., None], patch).mean(-1))
                place = np.full(self.tokens, -1)
                numbers = (above + np.arange(high))[:, None] * grid[1] + before + np.arange(wide)
                place[top : top + high, start : start + wide] = places[0].size + numbers
                places.append(place)
                before += wide
            above += high
        # The original's masks begin with the first crop although its pixels begin with the whole; what the model has
        # learned goes with that, so the row of -1 comes last.
        masks.append(np.full_like(masks[0], -1))
        return Crops(np.stack(pixels), np.stack(masks), np.stack(places).reshape(len(places), -1), grid)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """All pictures' crops after one another: `pixel_values`, `image_masks`, and `image_places`, which counts each
        picture's patch tokens from 0; `image_grids` [pictures, 2] and `num_crops` [pictures]."""
        pictures: Any = make_flat_list_of_images(images)
        cut = [self.crops(picture) for picture in pictures]
        data = {
            "pixel_values": np.concatenate([each.pixels for each in cut]),
            "image_masks": np.concatenate([each.masks for each in cut]),
            "image_places": np.concatenate([each.places for each in cut]),
            "image_grids": np.array([each.grid for each in cut]),
            "num_crops": np.array([len(each.pixels) for each in cut]),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def _check(self, patches: Size, pool: Size) -> None:
        for side, (count, width) in zip(("h", "w"), zip(patches, pool, strict=True), strict=True):
            length = getattr(self, f"image_token_length_{side}")
            if -(-count // width) != length:
                raise ValueError(f"{count} patches a side cannot be pooled to image_token_length_{side} {length}")
            if any(margin % width for margin in self.overlap_margins):
                raise ValueError(f"overlap_margins {self.overlap_margins} are not multiples of the pooling, {width}")
            if count <= sum(self.overlap_margins):
                raise ValueError(f"overlap_margins {self.overlap_margins} leave nothing of {count} patches")

    def _resized(self, array: np.ndarray, size: Size) -> tuple[np.ndarray, np.ndarray]:
        """The picture within `size`, its proportions kept, normalised float32, and which pixels are picture."""
        height, width = array.shape[:2]
        # In float32, as the original computes it, which decides about a pixel now and then.
        scale = min(np.float32(size[1]) / np.float32(width), np.float32(size[0]) / np.float32(height))
        scaled = (max(1, int(np.float32(height) * scale)), max(1, int(np.float32(width) * scale)))
        tensor = torch.from_numpy(array).permute(2, 0, 1).to(torch.float32) / 255
        if scaled != (height, width):
            tensor = F.interpolate(tensor[None], scaled, mode="bilinear", align_corners=False, antialias=True)[0]
        image = tensor.clip(0, 1).permute(1, 2, 0).numpy()
        top, left = (size[0] - scaled[0]) // 2, (size[1] - scaled[1]) // 2
        padding = [(top, size[0] - scaled[0] - top), (left, size[1] - scaled[1] - left)]
        mask = np.pad(np.ones(scaled, bool), padding)
        image = np.pad(image, [*padding, (0, 0)])
        if self.do_normalize:
            image -= np.array(self.image_mean, np.float32)
            image /= np.array(self.image_std, np.float32)
        return image, mask


def _array(image: Any) -> np.ndarray:
    """uint8 [height, width, 3], as a picture is looked at."""
    if isinstance(image, Image.Image):
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    array = np.asarray(image)
    if array.ndim != 3 or array.shape[-1] != 3:
        raise ValueError(f"a picture is [height, width, 3], not {list(array.shape)}")
    return np.ascontiguousarray(array.astype(np.uint8))


def _tiling(size: Size, window: Size, most: int) -> Size:
    """Rows and columns of crops whose windows together need the least enlarging of a picture of that size, or the least
    shrinking where all need some; fewer and flatter ones first."""
    tilings = [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]
    tilings.sort(key=lambda tiling: (tiling[0] * tiling[1], tiling[0]))
    # A side that is no longer than the margins makes the scale infinite or negative: then the other side decides.
    with np.errstate(divide="ignore"):
        scales = (np.array(tilings) * window).astype(np.float32) / np.array(size, np.float32)
    scale = scales.min(axis=-1)
    best = np.argmax(scale) if np.all(scale < 1) else np.argmin(np.where(scale < 1, 1e10, scale))
    return tilings[int(best)]


def _kept(tiles: int, patches: int, margins: Size, pool: int) -> list[Size]:
    """Of each crop along one side, the first pooled patch that is kept and how many are."""
    kept = []
    for tile in range(tiles):
        count = patches - sum(margins)
        count += margins[0] if tile == 0 else 0
        count += margins[1] if tile == tiles - 1 else 0
        kept.append((0 if tile == 0 else margins[0] // pool, -(-count // pool)))
    return kept


def _patches(image: np.ndarray, patch: int) -> np.ndarray:
    """[height, width, channels] as [patches, patch * patch * channels], by rows; pixels that fill no patch are cut
    off."""
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    image = image[: rows * patch, : columns * patch]
    return image.reshape(rows, patch, columns, patch, -1).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)


__all__ = ["MolmoImageProcessor"]
