"""The kinds of models that were proven: a tiny instance of each is quantized, loaded and compared in
tests/families/test_every_family.py, which sees to it that this table and the tests have the same kinds."""

from dataclasses import dataclass
from typing import Any

from mopeq_hub.families import text_model_type
from mopeq_hub.families.stated import REFUSED
from mopeq_hub.modeling.mends import mend_for
from mopeq_hub.modeling.registry import added


@dataclass(frozen=True)
class Kind:
    """A kind of model, by the types that config.json gives the whole and its text model.

    fused: whether transformers saves a layer's experts as one tensor a projection, or one tensor an expert.
    """

    model_type: str
    text_model_type: str
    fused: bool = False

    @property
    def name(self) -> str:
        alone = self.text_model_type in ("", self.model_type) or self.model_type not in COMPOSITES
        return self.model_type if alone else f"{self.model_type} over {self.text_model_type}"

    @property
    def stored(self) -> str:
        return "fused" if self.fused else "one tensor each"

    @property
    def loads(self) -> str:
        """What loads a published repo of this kind."""
        if mend_for(self.model_type):
            return "`import mopeq_hub`, then `from_pretrained`"
        if added(self.model_type):
            return "`from_pretrained` with `trust_remote_code=True`, or after `import mopeq_hub`"
        return "`from_pretrained`"

    def to_dict(self) -> dict[str, Any]:
        return {
            "model_type": self.model_type,
            "text_model_type": self.text_model_type,
            "proven": True,
            "experts": self.stored,
            "loads": self.loads,
        }


COMPOSITES = ("idefics3", "internvl", "lfm2_vl", "llava", "llava_next", "llava_onevision", "mistral3")
"""Models that see with a tower of their own and read with whatever text model their config names."""
_TEXTS = (
    "afmoe", "axk1", "axk2", "bailing_hybrid", "cohere2_moe", "deepseek_v2", "deepseek_v3", "deepseek_v32",
    "deepseek_v4", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa",
    "hunyuan_v1_moe", "hy_v3", "jamba", "kolibri1", "laguna", "lfm2_moe", "mellum", "mimo_v2_flash", "minimax",
    "minimax_m2", "mixtral", "nemotron_h", "olmoe", "phimoe", "qwen2_moe", "qwen3_5_moe_text", "qwen3_moe",
    "qwen3_next", "qwen4_exp_text", "solar_open", "switch_transformers",
)  # fmt: skip
_FUSED_TEXTS = ("gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hy_v4", "zaya")
_SEEING = (
    Kind("aria", "aria_text", fused=True),
    Kind("deepseek_ocr2", "deepseek_ocr2_text"),
    Kind("deepseek_vl_v2", "deepseek_v2"),
    Kind("dots3_note", "dots3_note_text"),
    Kind("ernie4_5_vl_moe", "ernie4_5_vl_moe_text"),
    Kind("gemma4", "gemma4_text", fused=True),
    Kind("glm4v_moe", "glm4v_moe_text"),
    Kind("glm5_next", "glm5_next_text"),
    Kind("inkling2", "inkling2_text", fused=True),
    Kind("inkling_mm_model", "inkling_text", fused=True),
    Kind("kimi_k25", "deepseek_v3"),
    Kind("llama4", "llama4_text", fused=True),
    Kind("minimax_m3_vl", "minimax_m3_vl_text"),
    Kind("mistral_large4", "mistral_large4_text"),
    Kind("molmo", "molmo"),
    Kind("muse_spark", "muse_spark_text", fused=True),
    Kind("nemotron_h_omni", "nemotron_h"),
    Kind("qwen3_5_moe", "qwen3_5_moe_text"),
    Kind("qwen3_omni_moe", "qwen3_omni_moe_text"),
    Kind("qwen3_omni_moe_thinker", "qwen3_omni_moe_text"),
    Kind("qwen3_vl_moe", "qwen3_vl_moe_text", fused=True),
    Kind("qwen4_exp", "qwen4_exp_text"),
    Kind("step3p7", "step3p5", fused=True),
    Kind("unlimited_ocr", "unlimited_ocr_text"),
    Kind("idefics3", "mixtral"),
    Kind("internvl", "gpt_oss", fused=True),
    Kind("internvl", "qwen3_moe"),
    Kind("lfm2_vl", "lfm2_moe"),
    Kind("llava", "deepseek_v2"),
    Kind("llava", "olmoe"),
    Kind("llava", "qwen3_moe"),
    Kind("llava_next", "mixtral"),
    Kind("llava_onevision", "qwen2_moe"),
    Kind("mistral3", "mistral4", fused=True),
)
PROVEN = (
    *_SEEING,
    *sorted(
        (*(Kind(name, name) for name in _TEXTS), *(Kind(name, name, fused=True) for name in _FUSED_TEXTS)),
        key=lambda kind: kind.model_type,
    ),
)


def table() -> str:
    """The kinds as a table that reads well on a terminal."""
    rows = [("model type", "experts in the source", "a publication loads by")]
    rows += [(kind.name, kind.stored, kind.loads.replace("`", "")) for kind in PROVEN]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    refused = [f"{family.model_type} is refused: {family.refused}." for family in REFUSED]
    composites = f"{', '.join(COMPOSITES[:-1])} and {COMPOSITES[-1]}"
    return "\n".join([*lines, "", f"{composites} are proven over any text model above.", *refused])


def summary() -> str:
    """The kinds in Markdown, those alike in a row, and those that are refused: the README's table."""
    alike: dict[tuple[str, str], list[str]] = {}
    for kind in PROVEN:
        alike.setdefault((kind.loads, kind.stored), []).append(f"`{kind.name}`")
    rows = [f"| {', '.join(names)} | {stored} | {loads} |" for (loads, stored), names in alike.items()]
    refused = [f"- `{family.model_type}`: {family.refused}." for family in REFUSED]
    head = ["| model types | experts in the source | a publication loads by |", "| --- | --- | --- |"]
    return "\n".join([*head, *rows, "", "Refused before anything is downloaded:", "", *refused])


def is_proven(config: dict[str, Any]) -> bool:
    """Whether models of this config.json's kind were proven: as such, or both parts of a composite, each elsewhere."""
    whole, text = str(config.get("model_type")), text_model_type(config)
    if whole in COMPOSITES:
        return any(kind.text_model_type == text for kind in PROVEN)
    return any(kind.model_type == whole for kind in PROVEN)
