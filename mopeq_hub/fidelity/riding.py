"""The proof of a model that only passes through: measured while it is quantized, so that nothing comes a second time.

As each shard goes by, the hidden states of all questions go through the blocks that it completes, the original's and
the published ones. What that has come to is kept beside the work, so that a run that was stopped goes on.
"""

from pathlib import Path
from typing import Any

import numpy as np

from mopeq_hub import workplace
from mopeq_hub.fidelity.blocks import BlockPass
from mopeq_hub.fidelity.by_blocks import riding
from mopeq_hub.fidelity.cost import stored_dtype
from mopeq_hub.fidelity.document import Outcome, document
from mopeq_hub.fidelity.measure import check_prepared
from mopeq_hub.manifest import bitmap_of, remote_files
from mopeq_hub.model import Model
from mopeq_hub.progress import Progress
from mopeq_hub.quantization.shards import write_stand_in
from mopeq_hub.quantization.stream import Piece, output_shards, plan_units
from mopeq_hub.questions import Questions
from mopeq_hub.questions.inputs import Encoder
from mopeq_hub.recipe import Recipe
from mopeq_hub.source import companions


class RidingProof:
    """A measurement that rides on a quantize pass; what the pass tells of each piece is all it needs.

    resumed: whether it goes on from what an earlier run left in `states`.
    """

    def __init__(self, model: Model, questions: Questions, recipe: Recipe, states: Path) -> None:
        """Raises MopeqError where what an earlier run left is damaged."""
        for name in companions(model.source):
            model.source.path(name)
        encoder = Encoder(model.source.path("config.json").parent, model.trusted)
        rows = encoder.rows(questions.items, with_answer=True, limit=questions.limit)
        self._model, self._questions, self._states = model, questions, states
        self._blocks = BlockPass(model, rows, stored_dtype(model))
        self._watch = riding(self._blocks, model.checkpoint, recipe)
        self.resumed = self._blocks.resume(states)

    def see(self, piece: Piece, made: dict[str, np.ndarray]) -> None:
        """Take a piece in, original and packed, while it is here."""
        self._watch(piece, made)

    def keep(self) -> None:
        """Remember everything so far."""
        self._blocks.save(self._states)

    def document(self, folder: Path, manifest: dict[str, Any], progress: Progress) -> dict[str, Any]:
        """fidelity.json. `folder` holds the publication but for its weights, whose headers are checked instead.

        Raises MopeqError where the published form would not load with every weight in its place and width.
        """
        with workplace.scratch() as scratch:
            for name in ("config.json", *remote_files(manifest)):
                (scratch / name).write_bytes((folder / name).read_bytes())
            bitmap = bitmap_of(manifest)
            recipe = Recipe.from_dict(manifest["recipe"])
            for shard in output_shards(plan_units(self._model.checkpoint, self._model.layout, bitmap, recipe)):
                write_stand_in(scratch, shard)
            index = "model.safetensors.index.json"
            (scratch / index).write_bytes((folder / index).read_bytes())
            loading = check_prepared(scratch, manifest, progress)
        return document(Outcome.of_blocks(self._blocks, loading), self._questions, manifest)
