"""The registry: which family a config.json belongs to, and a clear word where it belongs to none."""

from typing import Any

from mopeq_hub.errors import MopeqError
from mopeq_hub.families.base import Family
from mopeq_hub.families.deepseek_vl2 import DEEPSEEK_VL2
from mopeq_hub.families.ernie4_5_vl_moe import ERNIE4_5_VL_MOE
from mopeq_hub.families.llama4 import LLAMA4
from mopeq_hub.families.molmoe import MOLMOE
from mopeq_hub.families.muse_spark import MUSE_SPARK
from mopeq_hub.families.qwen3_omni_moe import QWEN3_OMNI_MOE
from mopeq_hub.families.stated import STATED
from mopeq_hub.families.step3p7 import STEP3P7
from mopeq_hub.families.switch_transformers import SWITCH_TRANSFORMERS

_OWN_FILES = (DEEPSEEK_VL2, MOLMOE, ERNIE4_5_VL_MOE, LLAMA4, MUSE_SPARK, QWEN3_OMNI_MOE, STEP3P7, SWITCH_TRANSFORMERS)
_FAMILIES = {family.model_type: family for family in (*_OWN_FILES, *STATED)}
"""Families with something to state; of all others transformers tells everything."""
SEEING = ("image-text-to-text", "any-to-any")
"""The Hub's names for what models do that are asked about pictures."""
_TEXT_CONFIGS = ("text_config", "language_config", "thinker_config", "llm_config")
_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_routed_experts")


def identify(config: dict[str, Any], where: str, foreign: bool = False) -> Family:
    """The family of the model with this config.json; `where` names the model in errors, `foreign` as in `family_of`.

    Raises MopeqError where it is no mixture of experts, or none of those that its model type stands for.
    """
    whole, text = str(config.get("model_type") or "no model_type"), text_model_type(config)
    kind = whole if text == whole else f"{whole} over {text}"
    if not _counts_experts(config):
        raise MopeqError(f"{where} ({kind}) is not a mixture of experts", "name a model whose config counts experts")
    family = family_of(whole, text, foreign)
    if trouble := family.trouble_with(config):
        raise MopeqError(
            f"{where} is a mixture of experts of a kind not supported yet: {trouble}", "name another model"
        )
    return family


def family_of(whole: str, text: str, foreign: bool = False) -> Family:
    """The family by the model types of the whole model and of its text model. foreign: the classes come with the model,
    so that what is stated of transformers' own under the same type says nothing of them."""
    if foreign:
        return Family(text)
    return _FAMILIES.get(whole) or _FAMILIES.get(text) or Family(text)


def text_model_type(config: dict[str, Any]) -> str:
    """The model type of the text model in a config.json: of the part that a model of several says it is, or its own."""
    for name in _TEXT_CONFIGS:
        part = config.get(name)
        if isinstance(part, dict):
            found = text_model_type(part)
            return found if found else str(config.get("model_type"))
    return str(config.get("model_type") or "")


def _counts_experts(config: dict[str, Any]) -> bool:
    """Whether the config, or one nested in it under whatever name, counts more than one expert."""
    counted = any(type(config.get(count)) is int and config[count] > 1 for count in _COUNTS)
    return counted or any(_counts_experts(nested) for nested in config.values() if isinstance(nested, dict))
