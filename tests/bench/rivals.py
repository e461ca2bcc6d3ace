"""auto-round's searches, called as its own quantizers call them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from tests.bench.tables import silence


class Rival(NamedTuple):
    """One search. rows: how many of a matrix it is timed on. Whole matrices but for the slowest, whose time is in
    proportion: the others work in pieces, or leave the cache where a matrix does not fit it."""

    name: str
    symmetric: bool
    search: Callable[..., Any]
    rows: int

    def __call__(self, weight: torch.Tensor, bits: int) -> torch.Tensor:
        """The quantized weight's numbers. float32 in: at bfloat16 it is no faster, and less exact."""
        with silence():
            found: torch.Tensor = self.search(weight, bits=bits, group_size=64)[0]
        return found


def searches() -> list[Rival]:
    with silence():
        from auto_round.data_type.int import quant_tensor_opt_rtn_sym
        from auto_round.data_type.neuqi import quant_tensor_opt_rtn_asym, quant_tensor_opt_rtn_sym_neuqi

    return [
        Rival("scale search", True, quant_tensor_opt_rtn_sym, 1408),
        Rival("NeUQI, symmetric", True, quant_tensor_opt_rtn_sym_neuqi, 1408),
        Rival("NeUQI, asymmetric", False, quant_tensor_opt_rtn_asym, 128),
    ]
