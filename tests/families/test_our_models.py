"""Models that transformers lacks, published: the repo loads by its own code, where that is trusted, and without it
where mopeq_hub is imported; both compute with the weights that were written."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mopeq_hub import Recipe, quantize
from mopeq_hub.calibration import load
from mopeq_hub.errors import MopeqError
from mopeq_hub.families import identify
from mopeq_hub.fidelity.measure import Way, measure
from mopeq_hub.manifest import bitmap_of
from mopeq_hub.model import open_model
from mopeq_hub.modeling.registry import added
from mopeq_hub.profiles import profile_of
from mopeq_hub.progress import Quiet
from mopeq_hub.questions import Question, read_questions
from mopeq_hub.questions.inputs import Encoder, batches
from mopeq_hub.recipe import CALIBRATED
from mopeq_hub.sensitivity.activity import COLLECTORS
from mopeq_hub.space import render_space
from tests import tiny
from tests.apart import run_apart
from tests.conftest import ASSETS
from tests.families.test_published_form import IMAGE, ROUNDING, dequantized

LOAD = """
import sys
{way}
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
inputs, output, *folders = sys.argv[1:]
found = []
for folder in folders:
    model, info = {load}(folder, output_loading_info=True, {trust})
    processor = AutoProcessor.from_pretrained(folder, {trust})
    torch.nn.Module.float(model)
    with torch.inference_mode():
        logits = model(**torch.load(inputs)).logits
    written = model.generate(**torch.load(inputs), max_new_tokens=3, do_sample=False, pad_token_id=2)
    found.append({{
        "logits": logits,
        "new": written.shape[1] - torch.load(inputs)["input_ids"].shape[1],
        "trouble": {{name: sorted(map(str, keys)) for name, keys in info.items() if keys}},
        "modules": [type(model).__module__.split(".")[0], type(processor).__module__.split(".")[0]],
        "prompt": processor.apply_chat_template([{{"role": "user", "content": "hi"}}], add_generation_prompt=True),
        "project": "mopeq_hub" in sys.modules,
    }})
torch.save(found, output)
"""
PLAIN = "AutoModelForImageTextToText.from_pretrained"
WAYS = {
    "code": LOAD.format(way="", load=PLAIN, trust="trust_remote_code=True"),
    "import": LOAD.format(way="import mopeq_hub", load=PLAIN, trust=""),
    "runtime": LOAD.format(way="import mopeq_hub", load="mopeq_hub.load", trust=""),
}


def loaded(way: str, folders: list[Path], inputs: dict[str, torch.Tensor], scratch: Path) -> list[dict[str, Any]]:
    """What a process of its own that loads the folders this way, one after the other, gets of each."""
    torch.save(inputs, scratch / "inputs.pt")
    places = [scratch / "inputs.pt", scratch / f"{way}.pt", *folders]
    run_apart(WAYS[way], *places, project=way != "code")
    return list(torch.load(scratch / f"{way}.pt"))


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A file of two questions on pictures and two without."""
    folder = tmp_path_factory.mktemp("few")
    asked = [json.loads(line) for line in (tiny.SHAPES / "calibration.jsonl").read_text("utf-8").splitlines()]
    pictured = [each for each in asked if each["image"]][:2]
    for each in pictured:
        (folder / "images").mkdir(exist_ok=True)
        (folder / each["image"]).write_bytes((tiny.SHAPES / each["image"]).read_bytes())
    lines = [json.dumps(each) for each in [*pictured, *(each for each in asked if not each["image"])][:4]]
    (folder / "few.jsonl").write_text("\n".join(lines), "utf-8")
    return folder / "few.jsonl"


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("tiny", Recipe(group_size=32)),
        ("small", Recipe(group_size=32, symmetric=False, granularity="projection", rest_bits=8)),
        ("base", Recipe(group_size=32, allocator="knapsack", budget="0.6x", rest_bits="auto")),
        ("small", Recipe(group_size=32, quantizer="signround", iterations=1)),
        ("base", Recipe(group_size=32, quantizer="gptq", symmetric=False)),
    ],
)
def test_a_published_deepseek_vl2_loads_both_ways_with_the_weights_that_were_written(kind, recipe, few, tmp_path):
    source = tiny.deepseek_vl2(tmp_path / "source", kind)
    calibration = few if recipe.quantizer in CALIBRATED else None
    repo = quantize(str(source), tmp_path / "quantized", recipe, calibration=calibration)
    if calibration:
        assert repo.manifest["calibration"]["with_picture"] == 2
    bitmap = bitmap_of(repo.manifest)
    assert len({*bitmap.bits.values(), *bitmap.rest.values()}) > 1
    inputs = (
        Encoder(source).rows([Question(IMAGE, "how many cyan shapes are there ?", "one")], with_answer=True)[0].inputs
    )
    assert inputs["images_spatial_crop"].any()

    reference = dequantized(source, repo.folder, bitmap, recipe, tmp_path / "reference")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (reference / name).write_bytes((source / name).read_bytes())
    # What is quantized comes last: auto-round's loader changes transformers for the whole process.
    expected, original, imported = loaded("import", [reference, source, repo.folder], inputs, tmp_path)
    (by_code,) = loaded("code", [repo.folder], inputs, tmp_path)
    (fast,) = loaded("runtime", [repo.folder], inputs, tmp_path)
    largest = expected["logits"].abs().max()
    homes = {"code": "transformers_modules", "import": "mopeq_hub", "runtime": "mopeq_hub"}
    for (way, home), found in zip(homes.items(), (by_code, imported, fast), strict=True):
        assert found["modules"] == [home, home]
        assert found["project"] == (way != "code")
        assert found["trouble"] == {}
        assert found["new"] == 3
        assert found["prompt"].endswith("<|User|>: hi\n\n<|Assistant|>:")
        assert (found["logits"] - expected["logits"]).abs().max() < ROUNDING * largest
        assert (found["logits"] - original["logits"]).abs().max() > 100 * ROUNDING * largest


@pytest.mark.parametrize("kind", ["tiny", "base"])
def test_block_by_block_it_has_the_fidelity_of_the_whole_model(kind, few, tmp_path):
    model = open_model(str(tiny.deepseek_vl2(tmp_path / "source", kind)))
    repo = quantize(model, tmp_path / "quantized", Recipe(group_size=32))
    blocks, whole = (
        measure(model, repo.folder, repo.manifest, read_questions(few), Way(blocks=way, dtype="float32"), Quiet())
        for way in (True, False)
    )
    assert (blocks["method"], whole["method"]) == ("blocks", "whole")
    assert blocks["kl"]["mean"] == pytest.approx(whole["kl"]["mean"], rel=1e-4)
    assert blocks["top1_agreement"] == whole["top1_agreement"]


def test_the_space_asks_both_models_by_the_publications_code(tmp_path):
    source = tiny.deepseek_vl2(tmp_path / "source")
    repo = quantize(str(source), tmp_path / "quantized", Recipe(group_size=32))
    render_space(tmp_path / "space", repo.manifest, str(repo.folder), str(source), None)
    said = json.loads((tmp_path / "space" / "publication.json").read_text("utf-8"))
    assert said["brings_code"]
    question = {"picture": str(IMAGE), "question": "which ?", "length": 4, "temperature": 0, "seed": 0}
    for folder in (said["original"], said["model"]):
        command = [sys.executable, str(tmp_path / "space" / "worker.py"), folder, "--code", said["model"]]
        command += ["--auto-class", said["auto_class"], "--pictures"]
        heard = subprocess.run(
            command, input=json.dumps(question) + "\n", capture_output=True, text=True, check=True, cwd=tmp_path
        ).stdout
        events = [json.loads(line)["event"] for line in heard.splitlines()]
        assert (events[0], events[-1]) == ("ready", "done")


def test_the_code_is_this_versions_and_the_sources_is_not_taken_over(tmp_path):
    source = tiny.deepseek_vl2(tmp_path / "source")
    (source / "modeling_deepseek_vl2.py").write_text("raise SystemExit('ran')", "utf-8")
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "theirs.Config"}}), "utf-8")
    repo = quantize(str(source), tmp_path / "quantized", Recipe(group_size=32))
    own = added("deepseek_vl_v2")
    assert own is not None
    assert {path.name for path in repo.folder.glob("*.py")} == {path.name for path in own.files}
    for path in own.files:
        assert (repo.folder / path.name).read_bytes() == path.read_bytes()
        assert path.name in repo.manifest["files"]
    assert json.loads((repo.folder / "config.json").read_text("utf-8"))["auto_map"] == own.auto_map


FULL_SIZE = json.loads((ASSETS / "deepseek_vl2_tensors.json").read_text("utf-8"))
LANGUAGE: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 1280, "intermediate_size": 6848, "moe_intermediate_size": 896, "num_hidden_layers": 12,
        "num_attention_heads": 10, "num_key_value_heads": 10, "n_routed_experts": 64, "vocab_size": 129280,
    },
    "small": {
        "hidden_size": 2048, "intermediate_size": 10944, "moe_intermediate_size": 1408, "num_hidden_layers": 27,
        "num_attention_heads": 16, "num_key_value_heads": 16, "n_routed_experts": 64, "vocab_size": 102400,
        "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    },
    "base": {
        "hidden_size": 2560, "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 32, "num_key_value_heads": 32, "n_routed_experts": 72, "vocab_size": 129280,
        "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
    },
}  # fmt: skip


def full_size(folder: Path, kind: str) -> Path:
    """The real checkpoint of this kind as headers alone: a file of its size that takes no disk."""
    config = json.loads((ASSETS / f"deepseek-vl2-{kind}-like" / "config.json").read_text("utf-8"))
    del config["architectures"]
    config["language_config"] |= {**LANGUAGE[kind], "num_experts_per_tok": 6}
    config["vision_config"] |= {"image_size": 384, "width": 1152, "layers": 27, "heads": 16, "mlp_ratio": 3.7362}
    config["projector_config"] |= {"input_dim": 1152, "n_embed": LANGUAGE[kind]["hidden_size"]}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in _tensors(kind):
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    folder.mkdir()
    encoded = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def _tensors(kind: str) -> list[tuple[str, list[int]]]:
    """Every tensor's name and shape. A pattern's stars are numbers: the last is an expert's where there are two."""
    language = LANGUAGE[kind]
    found = []
    for pattern, shape, count, example in FULL_SIZE[kind]["groups"]:
        before, *rest = pattern.split("*")
        if not rest:
            found.append((pattern, shape))
        elif len(rest) == 2:
            experts = language["n_routed_experts"]
            layers = range(language["num_hidden_layers"] - count // experts, language["num_hidden_layers"])
            found += [(f"{before}{layer}{rest[0]}{e}{rest[1]}", shape) for layer in layers for e in range(experts)]
        else:
            first = int(example.removeprefix(before).split(".")[0])
            found += [(f"{before}{number}{rest[0]}", shape) for number in range(first, first + count)]
    assert len(found) == FULL_SIZE[kind]["ntensors"]
    return found


@pytest.mark.parametrize(("kind", "count"), [("tiny", 704), ("small", 1664), ("base", 2088)])
def test_the_real_models_are_planned_from_their_headers(kind, count, tmp_path):
    model = open_model(str(full_size(tmp_path / kind, kind)), named=False)
    assert len(model.layout.experts) == count
    assert sum(matrix.size for matrix in model.layout.routed) == FULL_SIZE[kind]["routed"]
    assert model.layout.layer_count == LANGUAGE[kind]["num_hidden_layers"]
    assert model.layout.experts_per_token == 6
    assert {name.split(".")[1] for name in model.layout.ignored} == {"attn_pool"}
    assert model.layout.routing.trouble == ""
    assert not [matrix.name for matrix in model.layout.rest if "vision" in matrix.name]


@pytest.mark.parametrize("kind", ["tiny", "base"])
def test_signals_are_measured_from_weights_and_while_it_answers(kind, tmp_path):
    folder = tiny.deepseek_vl2(tmp_path / "source", kind)
    model = open_model(str(folder), named=False)
    recipe = Recipe(signal="distortion", group_size=32, allocator="knapsack", budget="3.0bpw")
    profile = profile_of(model, recipe, Quiet())
    assert profile.sensitivities.keys() == model.layout.experts.keys()
    assert len(set(profile.sensitivities.values())) > 4

    live = load({"folder": str(folder), "auto_class": model.layout.auto_class}).requires_grad_(False)
    asked = [Question(IMAGE, "how many ?", "one"), Question(None, "how many ?", "two"), Question(IMAGE, "?", "red")]
    job = {"group_size": 32, "symmetric": True, "search": True, "seed": 0, "widths": [2, 3, 4], "rest": []}
    for signal, found in (("fisher", "costs"), ("frequency", "experts")):
        collector = COLLECTORS[signal](model, live, {**job, "signal": signal})
        collector.begin()
        for part, inputs in batches(Encoder(folder).rows(asked, with_answer=True)):
            collector.run(part, inputs)
        result = collector.result()[found]
        assert len(result) == (3 * 16 if found == "costs" else 2)


def test_what_only_shares_the_model_type_is_not_supported():
    config = json.loads((ASSETS / "deepseek-vl2-tiny-like" / "config.json").read_text("utf-8"))
    assert identify(config, "here").model_type == "deepseek_vl_v2"
    with pytest.raises(MopeqError, match="not supported yet: model type deepseek_vl_v2"):
        identify({**config, "architectures": ["DeepseekOCRForCausalLM"]}, "here")
