"""Made-up mopeq.json and fidelity.json, the same on every run, valid by the schemas (test_documents.py checks that)."""

import json
import random
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from mopeq_hub.recipe import Recipe
from mopeq_hub.report import Widths, split, uniform

SCHEMAS = Path(__file__).parents[2] / "mopeq_hub" / "schemas"
HUB_COMMIT = "9f3c1a7be02d4856a1c0d9e8f7b6a5948372615e"


def manifest(
    layers: int = 4,
    experts: int = 24,
    dense: int = 0,
    recipe: Recipe | None = None,
    expert_weights: int = 2_359_296,
    rest_weights: int = 540_000,
    **changes: Any,
) -> dict[str, Any]:
    """A manifest whose first `dense` layers have no routed experts; the most sensitive experts have the most bits, or
    layers, as the recipe's granularity has it; projections of an expert differ where they may."""
    recipe = recipe or Recipe()
    chance = random.Random(7)
    rows: list[dict[str, Any]] = []
    for layer in range(dense, layers):
        level = 900 + 25 * abs(layer - layers / 2)
        outliers = [1.25 if chance.random() < 0.05 else 1 for _ in range(experts)]
        sensitivity = [round(outlier * chance.gauss(level, 30), 3) for outlier in outliers]
        module = f"model.language_model.layers.{layer}.mlp.experts"
        rows.append({"layer": layer, "module": module, "sensitivity": sensitivity})
    ranked = sorted(value for row in rows for value in row["sensitivity"])
    for row in rows:
        thirds = [len(recipe.bits) * ranked.index(value) // len(ranked) for value in row["sensitivity"]]
        row["bits"] = [recipe.bits[third] for third in thirds]
        if recipe.granularity == "layer":
            row["bits"] = [recipe.bits[row["layer"] % len(recipe.bits)]] * experts
        if recipe.granularity == "projection":
            row["bits"] = [_by_projection(width, recipe, number) for number, width in enumerate(row["bits"])]
    widths = [width for row in rows for each in row["bits"] for width in split(each)]
    mean = sum(widths) / len(widths)
    bpw = mean + (16 + mean) / recipe.group_size
    rest_bytes = rest_weights * (2 if recipe.rest_bits == 16 else 1)
    signal: dict[str, Any] = {"name": "hessian", "estimator": recipe.estimator}
    if recipe.estimator == "hutchinson":
        signal |= {"probes": recipe.probes, "seed": recipe.seed}
    return {
        "schema_version": 1,
        "tool": {"name": "mopeq-hub", "version": "0.1.0", "format_version": 1},
        "source": {"name": "shapes-moe-vl", "kind": "folder", "card": {}, "commit": "5b" * 32},
        "recipe": recipe.to_dict(),
        "recipe_digest": "c4" * 32,
        "publication": "mopeq-c4c4c4c4c4c4-5b5b5b5b5b5b",
        "model": {
            "model_type": "llava",
            "text_model_type": "qwen3_moe",
            "auto_class": "AutoModelForImageTextToText",
            "task": "image-text-to-text",
            "blocks": "model.language_model.layers",
            "layers": layers,
            "experts_per_token": 4,
        },
        "signal": signal,
        "experts": [{key: row[key] for key in ("layer", "module", "bits", "sensitivity")} for row in rows],
        "rest": _rest(recipe, layers),
        "sizes": {
            "source_bytes": 2 * (expert_weights + rest_weights),
            "published_bytes": round(expert_weights * bpw / 8) + rest_bytes,
            "uniform_4bit_bytes": round(expert_weights * (4 + 20 / recipe.group_size) / 8) + rest_bytes,
            "expert_weights": expert_weights,
            "experts_bpw": bpw,
            "quantized_bpw": bpw + 0.125,
        },
        "versions": {"transformers": "5.23.0", "auto-round": "0.16.1", "torch": "2.13.0", "numpy": "2.4.6"},
        "files": {"model-00001-of-00001.safetensors": {"sha256": "a1" * 32, "bytes": 1_380_000}},
        **changes,
    }


def _by_projection(width: int, recipe: Recipe, number: int) -> Widths:
    """Widths around that of an expert: of one kind for each second expert, the down projection wider elsewhere."""
    down = min(recipe.bits[-1], width + number % 2)
    return width if down == width else {"gate": width, "up": width, "down": down}


def _rest(recipe: Recipe, layers: int) -> dict[str, Any]:
    """Four attention projections a layer."""
    if recipe.rest_bits != "auto":
        return {"bits": recipe.rest_bits, "quantized": 0 if recipe.rest_bits == 16 else 4 * layers, "unquantized": []}
    kinds = {"q_proj": 4, "k_proj": 8, "v_proj": 16, "o_proj": 3}
    names = {f"model.language_model.layers.{n}.self_attn.{kind}": kinds[kind] for n in range(layers) for kind in kinds}
    return {"bits": "auto", "quantized": 3 * layers, "unquantized": [], "widths": names}


def fidelity(
    of: dict[str, Any],
    by_blocks: bool = False,
    accuracy: bool = False,
    benchmarks: bool = False,
    compared: tuple[int, ...] = (2, 3, 4),
) -> dict[str, Any]:
    """A proof of the publication `of`, compared with uniform bit maps of the widths `compared`."""
    total = of["model"]["layers"]
    return {
        "schema_version": 1,
        "publication": of["publication"],
        "weights_digest": "d7" * 32,
        "method": "blocks" if by_blocks else "whole",
        "inputs": {
            "name": "eval.jsonl" if accuracy else "bundled",
            "sha256": "e5" * 32,
            "questions": 400 if accuracy else 16,
            "with_picture": 240 if accuracy else 10,
            "tokens": 1184 if accuracy else 512,
            "token_limit": 16_384,
        },
        "layers": {"total": total, "errors": [0.02 + 0.15 * n / total for n in range(total)] if by_blocks else None},
        "kl": {"mean": 0.04137, "p99": 0.5129},
        "top1_agreement": 0.9632,
        "perplexity": {"original": 1.2083, "published": 1.2311, "ratio": 1.01887},
        "accuracy": {"original": 0.95, "published": 0.9425, "questions": 400} if accuracy else None,
        "loading": {
            "check": "prepared" if by_blocks else "loaded",
            "quantized_modules": 312,
            "original_dtype": "bfloat16",
            "published_dtype": "bfloat16",
        },
        "comparisons": [_compared(of, bits, accuracy) for bits in compared],
        **({"benchmarks": _benchmarks()} if benchmarks else {}),
        **({"speed": _SPEED} if accuracy else {}),
    }


_SPEED = {"plain": 0.312, "runtime": 21.7, "dtype": "bfloat16", "threads": 2, "processor": "AMD EPYC <9004>"}


def _benchmarks() -> dict[str, Any]:
    """One that gave two numbers, of its first questions; one that gave one, of all; one that was not run."""
    run: dict[str, Any] = {"samples": 500, "of": 2374, "not_run": None}
    none: dict[str, Any] = {"samples": None, "of": None, "metrics": []}
    scores = [("mme_perception_score", 10476.2, 1461.9), ("mme_cognition_score", 298.57, 301.25)]
    return {
        "suite": "lmms-eval",
        "version": "0.7.3",
        "limit": 500,
        "dtype": "bfloat16",
        "results": [
            {**run, "name": "MME", "task": "mme", "metrics": [_scored(*score) for score in scores]},
            {**run, "name": "own", "task": "own", "samples": 40, "of": 40, "metrics": [_scored("exact_match", 1, 0.9)]},
            {**none, "name": "TextVQA", "task": "textvqa_val", "not_run": "it failed (KeyError)"},
        ],
    }


def _scored(metric: str, original: float, published: float) -> dict[str, Any]:
    return {"name": metric, "original": original, "published": published}


def _compared(of: dict[str, Any], bits: int, accuracy: bool) -> dict[str, Any]:
    choice = uniform(of, bits)
    mean = {2: 0.2214, 3: 0.0473, 4: 0.0102, 8: 0.0004}[bits]
    return {
        "name": choice.name,
        "bytes": choice.bytes,
        "experts_bpw": choice.bpw,
        "kl": {"mean": mean, "p99": 11 * mean},
        "top1_agreement": 1 - mean,
        "perplexity_ratio": 1 + mean / 2,
        "accuracy": 0.95 - mean / 3 if accuracy else None,
    }


def check(document: dict[str, Any], schema: str) -> None:
    """Raises where the document is not what the schema says."""
    Draft202012Validator(json.loads((SCHEMAS / schema).read_text("utf-8"))).validate(document)
