"""Whether a model that comes with its code can be run part by part, found out before its weights are fetched.

Of transformers' models that is known. Here one row of the questions goes through the parts, with zeros for weights:
what is asked is only whether the code can be called so.
"""

from collections.abc import Iterable

import torch

from mopeq_hub.errors import MopeqError
from mopeq_hub.families.live import LiveModel
from mopeq_hub.fidelity.staged import StagedModel, State
from mopeq_hub.model import Model
from mopeq_hub.questions import Questions
from mopeq_hub.questions.inputs import Encoder, placed
from mopeq_hub.source import companions


def check_parts(model: Model, questions: Questions) -> None:
    """Raises MopeqError where the code that comes with a model cannot be run part by part."""
    if model.code is None:
        return
    for name in companions(model.source):
        model.source.path(name)
    live = LiveModel.build(model.source.path("config.json"), model.source.name, code=model.code)
    try:
        _try(model, StagedModel(live.model, model.layout.blocks), questions)
    except (Exception, SystemExit) as error:
        lines = error.what if isinstance(error, MopeqError) else f"{type(error).__name__}: {error}"
        raise MopeqError(
            f"the code that comes with {model.source.name} cannot be run part by part: {lines.splitlines()[0][:300]}",
            "use a machine that holds the whole model",
        ) from None


def _try(model: Model, staged: StagedModel, questions: Questions) -> None:
    """One row, with a picture if there is one, through what comes before the layers, the first layer and the first with
    experts, and what follows the last."""

    def zeros(names: Iterable[str]) -> dict[str, torch.Tensor]:
        return {name: torch.zeros_like(staged.empty(name)) for name in names}

    item = next((item for item in questions.items if item.image), questions.items[0])
    (row,) = Encoder(model.source.path("config.json").parent, model.trusted).rows([item], with_answer=True)
    with staged.weights(zeros(staged.before)):
        given = staged.begin(placed(row.inputs, staged.dtype))
    around = zeros(staged.around)
    last: State | None = None
    for number in sorted({0, min(model.layout.modules_of)}):
        with staged.weights({**around, **zeros(staged.layers[number])}):
            last = staged.layer(number, given, last)
    assert last is not None
    with staged.weights({**around, **zeros(staged.after)}):
        staged.logits(row.inputs["input_ids"], given, last, row)
