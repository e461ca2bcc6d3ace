"""ERNIE 4.5 VL: two experts modules a layer, for text and pictures, of two widths; one list in the file."""

from mopeq_hub.families.base import Family


class _Ernie(Family):
    def expression(self, module: str) -> str:
        # auto-round's loader renames expressions as transformers does a file's names: `layers` that does not follow
        # `language_model.`, character by character, becomes `language_model.layers`. So dots must be bare.
        return module


ERNIE4_5_VL_MOE = _Ernie("ernie4_5_vl_moe_text")
