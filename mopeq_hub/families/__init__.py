"""The registry: which family a config.json belongs to, and a clear word where it belongs to none."""

from typing import Any

from mopeq_hub.errors import MopeqError
from mopeq_hub.families.base import Family
from mopeq_hub.families.deepseek_vl2 import DEEPSEEK_VL2
from mopeq_hub.families.llava import OVER_DEEPSEEK_V2, OVER_QWEN3_MOE
from mopeq_hub.families.mixtral import MIXTRAL
from mopeq_hub.families.molmoe import MOLMOE
from mopeq_hub.families.qwen3_vl_moe import QWEN3_VL_MOE
from mopeq_hub.families.switch_transformers import SWITCH_TRANSFORMERS

FAMILIES: tuple[Family, ...] = (
    OVER_QWEN3_MOE,
    OVER_DEEPSEEK_V2,
    QWEN3_VL_MOE,
    DEEPSEEK_VL2,
    MOLMOE,
    MIXTRAL,
    SWITCH_TRANSFORMERS,
)

_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")


def identify(config: dict[str, Any], where: str) -> Family:
    """The family of the model with this config.json; `where` names the model in errors.

    Raises MopeqError that says what was found: not a mixture of experts, or one that is not supported yet.
    """
    for family in FAMILIES:
        if family.fits(config):
            return family
    kind = str(config.get("model_type") or "no model_type")
    text = config.get("text_config")
    if isinstance(text, dict) and text.get("model_type"):
        kind += f" over {text['model_type']}"
    if not _counts_experts(config):
        raise MopeqError(f"{where} ({kind}) is not a mixture of experts", "name a model whose config counts experts")
    known = ", ".join(_describe(family) for family in FAMILIES)
    raise MopeqError(f"{where} is a mixture of experts of a kind not supported yet: {kind}", f"supported are {known}")


def _counts_experts(config: dict[str, Any]) -> bool:
    """Whether the config, or one nested in it under whatever name, counts more than one expert."""
    counted = any(type(config.get(count)) is int and config[count] > 1 for count in _COUNTS)
    return counted or any(_counts_experts(nested) for nested in config.values() if isinstance(nested, dict))


def _describe(family: Family) -> str:
    return family.model_type + (f" over {' or '.join(family.text_model_types)}" if family.text_model_types else "")
