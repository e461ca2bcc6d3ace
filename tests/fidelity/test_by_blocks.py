"""From the files of both models: the figures of the whole ones, and no file taken on trust."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mopeq_hub import MopeqError, pipeline, workplace
from mopeq_hub.fidelity.blocks import BlockPass
from mopeq_hub.fidelity.by_blocks import measure_by_blocks, riding
from mopeq_hub.fidelity.measure import Way, check_loading, measure
from mopeq_hub.fidelity.runner import Job, run
from mopeq_hub.manifest import bitmap_of, read_fidelity, read_manifest
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.quantization.stream import plan_units, quantize_unit
from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import Encoder
from mopeq_hub.recipe import Recipe
from tests import tiny
from tests.conftest import edit_json
from tests.test_float8 import to_float8

AUTO_CLASS = "AutoModelForImageTextToText"
HOLDS_A_BLOCK, HOLDS_LESS = 1_205_000_000, 1_202_000_000
"""Bytes of memory that hold the processes and some of the bundled model, but not all of it."""


def test_the_bundled_models_kl_is_that_of_the_whole_model(published: Path, shapes: Path, some_questions: Path) -> None:
    fidelity = read_fidelity(published)
    assert fidelity is not None
    assert (fidelity["method"], fidelity["loading"]["published_dtype"]) == ("whole", "float32")
    model, questions = open_model(str(shapes)), read_questions(some_questions)
    result = measure_by_blocks(model, published, read_manifest(published), questions, "float32", Quiet()).result()
    assert fidelity["kl"]["mean"] > 1e-4
    assert result["kl_mean"] == pytest.approx(fidelity["kl"]["mean"], abs=1e-5)
    assert result["kl_p99"] == pytest.approx(fidelity["kl"]["p99"], abs=1e-5)
    assert result["top1_agreement"] == fidelity["top1_agreement"]


def test_it_is_so_in_the_dtype_that_plain_loading_gives(published: Path, shapes: Path) -> None:
    model, manifest, questions = open_model(str(shapes)), read_manifest(published), read_questions(None)
    fidelity = measure(model, published, manifest, questions, Way(blocks=False, dtype="bfloat16"), Quiet())
    result = measure_by_blocks(model, published, manifest, questions, "bfloat16", Quiet()).result()
    assert fidelity["loading"]["published_dtype"] == "bfloat16"
    assert fidelity["kl"]["mean"] > 0.1, "questions that this model was not trained for"
    # The whole model computes by the runtime, whose sums are float32; blocks round as transformers does.
    assert result["kl_mean"] == pytest.approx(fidelity["kl"]["mean"], rel=0.05)


def test_a_quantize_pass_measures_as_it_goes(published: Path, shapes: Path, tmp_path: Path) -> None:
    model, manifest, questions = open_model(str(shapes)), read_manifest(published), read_questions(None)
    recipe = Recipe.from_dict(manifest["recipe"])
    blocks = BlockPass(model, Encoder(shapes).rows(questions.items, with_answer=True), "float32")
    for unit in reversed(plan_units(model.checkpoint, model.layout, bitmap_of(manifest), recipe)):
        watch = riding(blocks, model.checkpoint, recipe)
        quantize_unit(model.checkpoint, unit, recipe, tmp_path, lambda amount: None, watch=watch)
    from_files = measure_by_blocks(model, published, manifest, questions, "float32", Quiet())
    assert (blocks.result(), blocks.errors) == (from_files.result(), from_files.errors)


def test_float8_is_measured_as_what_it_stands_for(tmp_path: Path) -> None:
    folder, exact = (tiny.qwen3_vl_moe(tmp_path / name) for name in ("float8", "bfloat16"))
    to_float8(folder, exact, torch.bfloat16)
    repo = pipeline.quantize(str(folder), tmp_path / "quantized", Recipe(group_size=32, rest_bits=16))
    questions = read_questions(None, 300)
    ours, theirs = (
        measure_by_blocks(open_model(str(source)), repo.folder, repo.manifest, questions, "bfloat16", Quiet())
        for source in (folder, exact)
    )
    assert ours.result() == theirs.result()
    assert ours.result()["kl_mean"] > 0


def test_a_model_too_large_for_the_memory_is_measured_whole_all_the_same(
    publication: Path, shapes: Path, some_questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"original": str(shapes), "fidelity_tokens": 400, "compare": False}
    monkeypatch.setattr(workplace, "free_memory", lambda: HOLDS_A_BLOCK)
    fidelity = pipeline.evaluate(publication, some_questions, **options)  # type: ignore[arg-type]
    assert (fidelity["method"], fidelity["accuracy"], fidelity["loading"]["check"]) == ("blocks", None, "loaded")
    assert fidelity["layers"]["total"] == len(fidelity["layers"]["errors"]) == 4
    assert fidelity["loading"]["quantized_modules"] == 96 * 3 + 16
    assert 1 < fidelity["inputs"]["questions"] < 48
    assert fidelity["inputs"]["token_limit"] == 400
    pipeline.card(publication)
    assert "one block of the model after the other" in (publication / "README.md").read_text("utf-8")
    monkeypatch.setattr(workplace, "free_memory", lambda: HOLDS_LESS)
    with pytest.raises(MopeqError, match="do not hold a block of"):
        pipeline.evaluate(publication, some_questions, **options)  # type: ignore[arg-type]


def test_the_loaders_own_modules_are_compared_with_the_headers(publication: Path) -> None:
    job = Job("prepare", publication, AUTO_CLASS)
    manifest = read_manifest(publication)
    prepared = run(job, 0, Quiet())["loading"]
    assert len(prepared["widths"]) == 96 * 3 + 16
    check_loading(prepared, manifest)

    def widen(config: dict[str, Any]) -> None:
        rules = config["quantization_config"]["extra_config"]
        rules[next(iter(rules))] = {"bits": 8}

    edit_json(publication / "config.json", widen)
    with pytest.raises(MopeqError, match="are of another shape"):
        check_loading(run(job, 0, Quiet())["loading"], manifest)


def test_a_tensor_that_was_to_stay_must_have_stayed(publication: Path, shapes: Path) -> None:
    index = json.loads((publication / "model.safetensors.index.json").read_text("utf-8"))
    path = publication / index["weight_map"]["lm_head.weight"]
    tensors = load_file(path)
    tensors["lm_head.weight"][0, 0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    model, one = open_model(str(shapes)), read_questions(None, 1)
    with pytest.raises(MopeqError, match=r"lm_head.weight of the published form is not the original's"):
        measure_by_blocks(model, publication, read_manifest(publication), one, "float32", Quiet())
