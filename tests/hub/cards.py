"""The Hub's validation of the metadata block of a README.

The rules are those of the public Hub as far as they are documented or known from its messages.  An unknown pipeline
tag and an absent block are warnings there, not errors, and so they are here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from .repositories import SPACE_SDKS


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


LICENSES = _words(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 lgpl-lr isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by
    odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma grok2-community unknown
    other
    """
)

PIPELINE_TAGS = _words(
    """
    text-classification token-classification table-question-answering question-answering zero-shot-classification
    translation summarization feature-extraction text-generation fill-mask sentence-similarity text-to-speech
    text-to-audio automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text
    voice-activity-detection depth-estimation image-classification object-detection image-segmentation text-to-image
    image-to-text image-to-image image-to-video unconditional-image-generation video-classification
    reinforcement-learning robotics tabular-classification tabular-regression tabular-to-text table-to-text
    multiple-choice text-ranking text-retrieval time-series-forecasting text-to-video image-text-to-text
    image-text-to-image image-text-to-video visual-question-answering document-question-answering
    zero-shot-image-classification graph-ml mask-generation zero-shot-object-detection text-to-3d image-to-3d
    image-feature-extraction video-text-to-text keypoint-detection visual-document-retrieval any-to-any
    video-to-video other
    """
)

SPACE_COLORS = _words("red yellow green blue indigo purple pink gray")

_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")
_SPECIAL_LANGUAGES = {"code", "multilingual"}
_RELATIONS = {"adapter", "merge", "quantized", "finetune"}


@dataclass
class Findings:
    """What is wrong with a card."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def answer(self) -> dict[str, Any]:
        """The body of the validation endpoint's answer."""
        return {
            "errors": [{"message": message} for message in self.errors],
            "warnings": [{"message": message} for message in self.warnings],
        }


def metadata(content: str) -> dict[str, Any]:
    """The metadata of a card, or nothing where it cannot be read."""
    try:
        return _parse(content) or {}
    except (yaml.YAMLError, TypeError):
        return {}


def validate(content: str, kind: str) -> Findings:
    """Judge a README for a repository kind."""
    findings = Findings()
    try:
        data = _parse(content)
    except yaml.YAMLError as error:
        findings.errors.append(f"YAML metadata is not valid: {str(error).splitlines()[0]}")
        return findings
    except TypeError:
        findings.errors.append("YAML metadata must be a mapping")
        return findings
    if not data:
        findings.warnings.append("empty or missing yaml metadata in repo card")
        return findings
    _check_license(data, findings)
    _check_string_lists(data, findings)
    _check_languages(data, findings)
    if kind == "model":
        _check_model(data, findings)
    if kind == "space":
        _check_space(data, findings)
    return findings


def _parse(content: str) -> dict[str, Any] | None:
    block = _FRONT_MATTER.match(content)
    data = yaml.safe_load(block.group(1)) if block else None
    if data is not None and not isinstance(data, dict):
        raise TypeError("metadata is not a mapping")
    return data


def _check_license(data: dict[str, Any], findings: Findings) -> None:
    names = data.get("license")
    if names is None:
        return
    for name in names if isinstance(names, list) else [names]:
        if name not in LICENSES:
            findings.errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    if names == "other" and not isinstance(data.get("license_name"), str):
        findings.errors.append('"license_name" is required when "license" is "other"')
    for key in ("license_name", "license_link"):
        if data.get(key) is not None and not isinstance(data[key], str):
            findings.errors.append(f'"{key}" must be a string')


def _check_string_lists(data: dict[str, Any], findings: Findings) -> None:
    if "tags" in data and not isinstance(data["tags"], list | None):
        findings.errors.append('"tags" must be an array')
    for key in ("tags", "datasets", "metrics", "base_model"):
        for position, value in enumerate(_as_list(data.get(key))):
            if not isinstance(value, str):
                findings.errors.append(f'"{key}[{position}]" must be a string')


def _check_languages(data: dict[str, Any], findings: Findings) -> None:
    for value in _as_list(data.get("language")):
        if value not in _SPECIAL_LANGUAGES and not (isinstance(value, str) and _LANGUAGE.fullmatch(value)):
            findings.errors.append(
                f'"language" with value "{value}" is not valid. It must be an ISO 639-1, 639-2 or 639-3 code'
                ' (two/three letters), or a special value like "code", "multilingual".'
            )


def _check_model(data: dict[str, Any], findings: Findings) -> None:
    tag = data.get("pipeline_tag")
    if tag is not None and not isinstance(tag, str):
        findings.errors.append('"pipeline_tag" must be a string')
    elif tag is not None and tag not in PIPELINE_TAGS:
        findings.warnings.append(f'The pipeline tag "{tag}" is not in the official list')
    if data.get("library_name") is not None and not isinstance(data["library_name"], str):
        findings.errors.append('"library_name" must be a string')
    for value in _as_list(data.get("base_model")):
        if isinstance(value, str) and not _REPO_ID.fullmatch(value):
            findings.errors.append(f'"base_model" with value "{value}" is not valid. Use a model id from the Hub.')
    relation = data.get("base_model_relation")
    if relation is not None and relation not in _RELATIONS:
        findings.errors.append(f'"base_model_relation" must be one of [{", ".join(sorted(_RELATIONS))}]')
    if data.get("model-index") is not None:
        findings.errors.extend(_model_index_errors(data["model-index"]))


def _check_space(data: dict[str, Any], findings: Findings) -> None:
    if data.get("sdk") not in SPACE_SDKS:
        findings.errors.append(f'"sdk" must be one of [{", ".join(SPACE_SDKS)}]')
    for key in ("colorFrom", "colorTo"):
        if data.get(key) is not None and data[key] not in SPACE_COLORS:
            findings.errors.append(f'"{key}" must be one of [{", ".join(sorted(SPACE_COLORS))}]')
    description = data.get("short_description")
    if isinstance(description, str) and len(description) > 60:
        findings.errors.append('"short_description" length must be less than or equal to 60 characters long')


def _model_index_errors(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors: list[str] = []
    for position, model in enumerate(index):
        where = f"model-index[{position}]"
        errors += _missing(model, ("name", "results"), where)
        for number, result in enumerate(_members(model, "results")):
            errors += _result_errors(result, f"{where}.results[{number}]")
    return errors


def _result_errors(result: Any, where: str) -> list[str]:
    errors = _missing(result, ("task", "dataset", "metrics"), where)
    if isinstance(result, dict):
        errors += _missing(result.get("task"), ("type",), f"{where}.task") if "task" in result else []
        errors += _missing(result.get("dataset"), ("name", "type"), f"{where}.dataset") if "dataset" in result else []
    for number, metric in enumerate(_members(result, "metrics")):
        errors += _missing(metric, ("type", "value"), f"{where}.metrics[{number}]")
    return errors


def _missing(value: Any, keys: tuple[str, ...], where: str) -> list[str]:
    if not isinstance(value, dict):
        return [f'"{where}" must be of type object']
    return [f'"{where}.{key}" is required' for key in keys if value.get(key) is None]


def _members(value: Any, key: str) -> list[Any]:
    return _as_list(value.get(key)) if isinstance(value, dict) else []


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
