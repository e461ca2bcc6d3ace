"""Both models measured block by block, as their weights arrive, in the memory of one block and the hidden states.

Whoever reads the original and writes the published form offers each tensor once, in any order; as soon as the next part
of the model is complete it runs on every batch of rows, first the original's and then the published one's, and is
forgotten. At the end the figures are those of the two whole models.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mopeq_hub.families.live import LiveModel
from mopeq_hub.fidelity import saved
from mopeq_hub.fidelity.metrics import Comparison
from mopeq_hub.fidelity.staged import Given, StagedModel, State, hidden_states
from mopeq_hub.fidelity.stages import Gathering, Item, as_loaded, key_of, stages_of
from mopeq_hub.model import Model
from mopeq_hub.progress import Advance
from mopeq_hub.questions.inputs import Row, answer_logits, batches, placed


@dataclass
class Batch:
    """Rows that go through the model together.

    given: for the text model. original, published: what the last layer that ran gave; None before the first.
    """

    rows: list[Row]
    inputs: dict[str, torch.Tensor]
    given: Given
    original: State | None = None
    published: State | None = None


class BlockPass:
    """One measurement. Offers are copied at once, so what they are views of may be unmapped after the call.

    It holds the weights of parts that are not complete or not yet at their turn: of one part, if they are offered in
    the order of `stages`. errors: of each layer that ran, the relative L2 distance of the published model's hidden
    states from the original's, over all tokens.
    """

    def __init__(self, model: Model, rows: list[Row], dtype: str, advance: Advance = lambda amount: None) -> None:
        """dtype: that both compute in, by its name in torch. advance: is told of each part that ran."""
        where = model.source.path("config.json")
        live = LiveModel.build(where, model.source.name, dtype, model.code)
        self._staged = StagedModel(live.model, model.layout.blocks)
        self._advance, self.dtype = advance, dtype
        self._of = {"source": model.source.commit, "dtype": dtype, "rows": saved.digest(rows)}
        # Pictures are needed once, at the beginning, and are larger than all that is kept of them.
        self.rows = [replace(row, inputs={"input_ids": row.inputs["input_ids"]}) for row in rows]
        self._batches = [Batch([self.rows[row.number] for row in part], inputs, {}) for part, inputs in batches(rows)]
        self._figures: dict[str, float] | None = None
        self._around: dict[str, torch.Tensor] = {}
        self.stages = stages_of(model.layout, self._staged)
        self.held = [Gathering(stage, self._staged.empty) for stage in self.stages]
        self.errors: list[float] = []

    @property
    def held_bytes(self) -> int:
        """Bytes of weights that wait."""
        return sum(gathering.nbytes for gathering in self.held)

    def wants(self, item: Item) -> bool:
        """Whether the item is still to be offered."""
        return any(key_of(item) in gathering.missing for gathering in self.held)

    def offer(self, item: Item, original: torch.Tensor, published: torch.Tensor | None = None) -> None:
        """Take one tensor of both models, and run whatever is complete now. What is not wanted any more is passed over.

        item: a matrix of the layout, or the live name of a kept tensor. original: as `Matrix.read` gives it, or the
        kept tensor. published: float32 [out, in], what the packed weight stands for; None where it is the original.
        Raises MopeqError where the model cannot be run part by part.
        """
        if published is not None:
            published = as_loaded(published, self._staged.dtype)
        for gathering in self.held:
            if key_of(item) in gathering.missing:
                gathering.put(item, original, published)
        while self.held and not self.held[0].missing:
            self._run(self.held[0])
            self.held.pop(0)
            self._advance(1)

    def result(self) -> dict[str, float]:
        """`Comparison.result` of the two whole models. Raises ValueError before every part has run."""
        if self._figures is None:
            lacking = sorted(self.held[0].missing)
            raise ValueError(f"{self.held[0].stage.name} still lacks {len(lacking)} tensors, such as {lacking[0]}")
        return self._figures

    def save(self, folder: Path) -> None:
        """Keep everything that has been offered so far in a folder: hidden states, and weights that wait."""
        state = {
            "of": self._of,
            "errors": self.errors,
            "figures": self._figures,
            "around": self._around,
            "batches": [
                {"given": batch.given, "original": batch.original, "published": batch.published}
                for batch in self._batches
            ],
            "held": [
                {"missing": sorted(held.missing), "original": held.original, "published": held.published}
                for held in self.held
            ],
        }
        saved.write(folder, state)

    def resume(self, folder: Path) -> bool:
        """Go on where `save` was called; False where the folder holds nothing, or a measurement of something else.

        What was offered then need not be offered again. It is for the caller to keep a folder for each publication.
        Raises MopeqError where the folder is damaged.
        """
        state = saved.read(folder)
        if state is None or state["of"] != self._of:
            return False
        self.errors, self._figures = state["errors"], state["figures"]
        self._around = state["around"]
        done = len(self.stages) - len(state["held"])
        self.held = self.held[done:]
        for held, kept in zip(self.held, state["held"], strict=True):
            held.missing, held.original, held.published = set(kept["missing"]), kept["original"], kept["published"]
        for batch, kept in zip(self._batches, state["batches"], strict=True):
            batch.given, batch.original, batch.published = kept["given"], kept["original"], kept["published"]
            if done:
                batch.inputs = {"input_ids": batch.inputs["input_ids"]}
        self._advance(done)
        return True

    def _run(self, gathering: Gathering) -> None:
        if gathering.stage is self.stages[0]:
            self._begin(gathering)
        elif gathering.stage is self.stages[-1]:
            self._finish(gathering)
        else:
            self._go_through(len(self.errors), gathering)

    def _begin(self, gathering: Gathering) -> None:
        """Everything up to the first decoder layer is published as it is: one run is both models'."""
        with self._staged.weights(gathering.original):
            for batch in self._batches:
                batch.given = self._staged.begin(placed(batch.inputs, self._staged.dtype))
                batch.inputs = {"input_ids": batch.inputs["input_ids"]}
        self._around = {name: gathering.original[name] for name in self._staged.around}

    def _go_through(self, layer: int, gathering: Gathering) -> None:
        with self._staged.weights({**self._around, **gathering.original}):
            for batch in self._batches:
                batch.original = self._staged.layer(layer, batch.given, batch.original)
        distance = norm = 0.0
        with self._staged.weights({**self._around, **gathering.published}):
            for batch in self._batches:
                batch.published = self._staged.layer(layer, batch.given, batch.published)
                assert batch.original is not None
                original = hidden_states(batch.original).double()
                distance += float((hidden_states(batch.published).double() - original).square().sum())
                norm += float(original.square().sum())
        self.errors.append((distance / norm) ** 0.5 if norm else 0.0)

    def _finish(self, gathering: Gathering) -> None:
        comparison = Comparison(self.rows)
        with self._staged.weights({**self._around, **gathering.original}):
            for batch in self._batches:
                original, published = (self._logits(batch, hidden) for hidden in (batch.original, batch.published))
                for position, row in enumerate(batch.rows):
                    comparison.add(row, answer_logits(original[position], row), answer_logits(published[position], row))
        self._figures = comparison.result()

    def _logits(self, batch: Batch, hidden: State | None) -> torch.Tensor:
        assert hidden is not None
        return self._staged.logits(batch.inputs["input_ids"], batch.given, hidden, batch.rows[0])
