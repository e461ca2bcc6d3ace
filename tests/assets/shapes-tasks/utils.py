"""What shapes.yaml and the task files beside it refer to."""

from pathlib import Path
from typing import Any

from PIL import Image

_SHAPES = Path(__file__).parent.parent / "shapes-moe-vl"
QUESTIONS = str(_SHAPES / "eval.jsonl")


def pictures(question: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(_SHAPES / question["image"]).convert("RGB")] if question["image"] else []


def no_pictures(question: dict[str, Any]) -> list[Image.Image]:
    raise ValueError("no picture can be opened")
