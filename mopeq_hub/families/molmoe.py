"""MolmoE: an OLMoE that sees pictures, one of ours (`modeling/molmoe`). Dense Molmos have the same model type."""

from typing import Any

from mopeq_hub.families.base import Family


class _MolmoE(Family):
    def trouble_with(self, config: dict[str, Any]) -> str:
        return "" if config.get("block_type") == "moe" else "model type molmo, but its blocks are not MolmoE's"


MOLMOE = _MolmoE("molmo")
