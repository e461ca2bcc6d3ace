"""fidelity.json, made of what a measurement found, however it was made."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from mopeq_hub.errors import MopeqError
from mopeq_hub.manifest import SCHEMA_VERSION, weights_digest
from mopeq_hub.questions import Questions

if TYPE_CHECKING:
    from mopeq_hub.fidelity.blocks import BlockPass


@dataclass(frozen=True)
class Outcome:
    """What a measurement found.

    method: `whole` where each model was loaded as a user loads it, `blocks` where both went through memory block by
    block. figures: `Comparison.result`. questions: how many, from the first, their limit allowed. loading: what the
    loader said of the published form. dtypes: of the original's and the published form's arithmetic. accuracy: of both,
    None where answers do not count or none were generated. errors: relative L2 distance of the hidden states after each
    decoder layer.
    """

    method: Literal["whole", "blocks"]
    figures: dict[str, float]
    questions: int
    loading: dict[str, Any]
    dtypes: tuple[str, str]
    accuracy: tuple[float, float] | None = None
    errors: list[float] | None = None

    @classmethod
    def of_blocks(cls, blocks: "BlockPass", loading: dict[str, Any]) -> "Outcome":
        """What a block pass found that has run to its end."""
        dtypes = (blocks.dtype, blocks.dtype)
        return cls("blocks", blocks.result(), len(blocks.rows), loading, dtypes, errors=blocks.errors)


def document(outcome: Outcome, questions: Questions, manifest: dict[str, Any]) -> dict[str, Any]:
    """fidelity.json of the publication with this manifest, its comparisons left empty.

    Raises MopeqError where something measured is not a number.
    """
    figures = outcome.figures
    original_loss, loss = _number("original_loss", figures), _number("loss", figures)
    for layer, error in enumerate(outcome.errors or ()):
        _number(f"error of layer {layer}", {f"error of layer {layer}": error})
    return {
        "schema_version": SCHEMA_VERSION,
        "publication": manifest["publication"],
        "weights_digest": weights_digest(manifest),
        "method": outcome.method,
        "inputs": {
            "name": questions.name,
            "sha256": questions.digest,
            "questions": outcome.questions,
            "with_picture": sum(item.image is not None for item in questions.items[: outcome.questions]),
            "tokens": figures["tokens"],
            "token_limit": questions.limit,
        },
        "layers": {"total": manifest["model"]["layers"], "errors": outcome.errors},
        "kl": {"mean": _number("kl_mean", figures), "p99": _number("kl_p99", figures)},
        "top1_agreement": _number("top1_agreement", figures),
        "perplexity": {
            "original": math.exp(original_loss),
            "published": math.exp(loss),
            "ratio": math.exp(loss - original_loss),
        },
        "accuracy": outcome.accuracy
        and {"original": outcome.accuracy[0], "published": outcome.accuracy[1], "questions": outcome.questions},
        "loading": {
            "check": outcome.loading["check"],
            "quantized_modules": len(outcome.loading["widths"]),
            "original_dtype": outcome.dtypes[0],
            "published_dtype": outcome.dtypes[1],
        },
        **({"speed": speed} if (speed := outcome.loading.get("speed")) else {}),
        "comparisons": [],
    }


def _number(name: str, figures: dict[str, float]) -> float:
    value = figures[name]
    if not math.isfinite(value):
        raise MopeqError(
            f"the {name} measured is {value}", "nothing was published; the source or its published form computes NaN"
        )
    return float(value)
