"""What a user gives beside the model for signals that need it. A recipe names it by digest or commit only."""

from dataclasses import dataclass
from pathlib import Path

from mopeq_hub.questions import Questions


@dataclass(frozen=True)
class Given:
    """calibration: a file of questions, None for the bundled ones. initial: the folder, or owner/name@commit, of an
    earlier checkpoint of the model, None where there is none. questions: what the proof will be measured on, None for
    the bundled ones."""

    calibration: Path | None = None
    initial: str | None = None
    questions: Questions | None = None


NOTHING = Given()
