"""The proof of a model that memory does not hold, from its files, a block of both models at a time.

What `BlockPass` takes as it comes is read here in the order in which it is needed, mapped from the source's files and
from those of the quantized folder.
"""

from pathlib import Path
from typing import Any

import torch

from mopeq_hub.bitmap import BitMap, width_of
from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Expert, Matrix
from mopeq_hub.fidelity.blocks import BlockPass
from mopeq_hub.fidelity.inputs import Encoder
from mopeq_hub.fidelity.questions import Questions
from mopeq_hub.fidelity.stages import Item
from mopeq_hub.model import Model
from mopeq_hub.progress import Progress
from mopeq_hub.quantization.packing import Packed, dequantize
from mopeq_hub.recipe import Recipe
from mopeq_hub.source import FolderSource


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
    kept = {live: source for source, live in model.layout.kept.items()}
    with progress.stage("measure by blocks", model.layout.layer_count + 2, "blocks") as advance:
        encoder = Encoder(folder)
        blocks = BlockPass(model, encoder.rows(questions.items, True, questions.limit), dtype, advance)
        for stage in blocks.stages:
            for item in filter(blocks.wants, stage.items):
                original = model.checkpoint.tensor(kept[item]) if isinstance(item, str) else item.read(model.checkpoint)
                blocks.offer(item, original, published.read(item, original))
    return blocks


class _Published:
    """The tensors of a quantized folder, as weights."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self._checkpoint = Checkpoint(FolderSource(folder))
        self._recipe = Recipe.from_dict(manifest["recipe"])
        self._bitmap = BitMap(
            {
                Expert(entry["layer"], index): bits
                for entry in manifest["experts"]
                for index, bits in enumerate(entry["bits"])
            }
        )

    def read(self, item: Item, original: torch.Tensor) -> torch.Tensor | None:
        """The weight [out, in], float32, that is packed; None where the tensor stayed as it is."""
        if isinstance(item, Matrix):
            bits = width_of(item, self._bitmap, self._recipe)
            if bits != 16:
                return self._unpacked(item.name, bits)
        name = item if isinstance(item, str) else f"{item.name}.weight"
        if not torch.equal(self._checkpoint.tensor(name), original):
            raise MopeqError(f"{name} of the published form is not the original's", "quantize it again")
        return None

    def _unpacked(self, name: str, bits: int) -> torch.Tensor:
        parts = (self._checkpoint.tensor(f"{name}.{part}").numpy() for part in ("qweight", "qzeros", "scales"))
        return torch.from_numpy(dequantize(Packed(*parts), bits, self._recipe.symmetric))
