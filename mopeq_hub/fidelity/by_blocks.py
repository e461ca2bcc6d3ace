"""Where a block pass gets its weights from: a quantize pass that it rides on, or the files of both models.

A model that memory does not hold is measured from its files in the order in which its blocks run, mapped from the
source and from the quantized folder.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mopeq_hub.bitmap import width_of
from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Matrix
from mopeq_hub.fidelity.blocks import BlockPass
from mopeq_hub.fidelity.stages import Item
from mopeq_hub.kept import Kept, as_tensor, kept_dtype
from mopeq_hub.manifest import bitmap_of
from mopeq_hub.model import Model
from mopeq_hub.packing import Packed, dequantize
from mopeq_hub.progress import Progress
from mopeq_hub.quantization.stream import Piece, Watcher, unquantized
from mopeq_hub.questions import Questions
from mopeq_hub.questions.inputs import Encoder
from mopeq_hub.recipe import Recipe
from mopeq_hub.source import FolderSource


def riding(blocks: BlockPass, checkpoint: Checkpoint, recipe: Recipe) -> Watcher:
    """What a quantize pass is to tell of each piece, so that `blocks` is measured as it goes and nothing is read twice
    from the source's host.

    Pieces may come in any order; in that of `blocks.stages` one block is in memory.
    """

    def watch(piece: Piece, made: dict[str, np.ndarray]) -> None:
        item: Item = piece.matrix or piece.name
        if blocks.wants(item):
            if piece.bits == 16:
                plan = piece.tensors[0]
                blocks.offer(item, as_tensor(made[plan.name], plan.dtype))
            else:
                assert piece.matrix is not None
                published = _unpacked(piece.name, made.__getitem__, piece.bits, recipe)
                blocks.offer(item, original_of(checkpoint, piece.matrix), published)

    return watch


def measure_by_blocks(
    model: Model,
    folder: Path,
    manifest: dict[str, Any],
    questions: Questions,
    dtype: str,
    progress: Progress,
) -> BlockPass:
    """Measure the quantized `folder` against its original; the pass that comes back has run to its end.

    dtype: that both compute in, by its name in torch.
    Raises MopeqError where a published tensor that was to stay as it is does not.
    """
    published = _Published(folder, manifest)
    with progress.stage("measure by blocks", model.layout.layer_count + 2, "blocks") as advance:
        encoder = Encoder(folder, model.trusted)
        blocks = BlockPass(model, encoder.rows(questions.items, True, questions.limit), dtype, advance)
        for stage in blocks.stages:
            for item in filter(blocks.wants, stage.items):
                original = original_of(model.checkpoint, model.layout.kept[item] if isinstance(item, str) else item)
                blocks.offer(item, original, published.read(item, original))
            for source in stage.sources:
                model.checkpoint.let_go(source)
    return blocks


def original_of(checkpoint: Checkpoint, item: Matrix | Kept) -> torch.Tensor:
    """The original's tensor, most where it lies in the mapped file, a matrix as [out, in]; float8 as the bfloat16 that
    transformers makes of it."""
    if isinstance(item, Kept):
        return as_tensor(item.read(checkpoint), kept_dtype(checkpoint, item.sources[0]))
    return as_tensor(unquantized(checkpoint, item), kept_dtype(checkpoint, item.source))


def _unpacked(module: str, get: Callable[[str], np.ndarray], bits: int, recipe: Recipe) -> torch.Tensor:
    """The weight [out, in], float32, that the packed tensors of a module stand for; `get` gives them by their names."""
    return torch.from_numpy(dequantize(Packed.of(module, get), bits, recipe.symmetric))


class _Published:
    """The tensors of a quantized folder, as weights."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self._checkpoint = Checkpoint(FolderSource(folder))
        self._recipe = Recipe.from_dict(manifest["recipe"])
        self._bitmap = bitmap_of(manifest)

    def read(self, item: Item, original: torch.Tensor) -> torch.Tensor | None:
        """The weight [out, in], float32, that is packed; None where the tensor stayed as it is."""
        if isinstance(item, Matrix):
            bits = width_of(item, self._bitmap, self._recipe)
            if bits != 16:
                return _unpacked(item.name, self._checkpoint.array, bits, self._recipe)
        name = item if isinstance(item, str) else f"{item.name}.weight"
        stored = as_tensor(self._checkpoint.array(name), self._checkpoint.tensors[name].dtype)
        if not torch.equal(stored, original):
            raise MopeqError(f"{name} of the published form is not the original's", "quantize it again")
        return None
