"""Tiny configurations of every kind of model that was proven, and what to ask an instance: token ids, and a picture
where it takes one."""

from typing import Any

import torch

from tests.families.seeing import SAYS_WHERE, WHOLES, pictures
from tests.families.texts import IMAGE, TEXTS, text

NAMES = (*WHOLES, *TEXTS)


def config_of(name: str) -> Any:
    return WHOLES[name]() if name in WHOLES else text(name)


def takes_pictures(name: str) -> bool:
    return name in WHOLES


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    """What the forward of an instance is called with: a few tokens, with a picture among them where it takes one."""
    if not takes_pictures(name):
        return {"input_ids": torch.arange(5, 17)[None]}
    outer = name.split(" ")[0]
    count, picture = pictures()[outer]
    ids = torch.tensor([[5, 6, *[IMAGE] * count, 7, 8, 9]])
    kinds = dict.fromkeys(SAYS_WHERE.get(outer, ()), (ids == IMAGE).int())
    return {"input_ids": ids, **picture, **kinds}
