"""MolmoE is planned, quantized and published as every other family is, from safetensors and from torch's files; what is
published loads with transformers and auto-round alone, and with this project."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from mopeq_hub import MopeqError, Recipe, pipeline, publish
from mopeq_hub.bitmap import BitMap
from mopeq_hub.manifest import bitmap_of
from mopeq_hub.model import open_model
from mopeq_hub.quantization.stream import output_shards, plan_units
from tests.apart import run_apart
from tests.families.test_published_form import dequantized
from tests.hub import HubServer, client_pointed_at
from tests.modeling.molmoe import REFERENCE, as_torch_files, full_size, with_processor

RECIPE = Recipe(group_size=32)
LOAD = """
import sys

folder, output, way = sys.argv[1:]
if way != "alone":
    import mopeq_hub

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

trusted = {"trust_remote_code": True} if way == "alone" else {}
load = mopeq_hub.load if way == "fast" else AutoModelForImageTextToText.from_pretrained
model, info = load(folder, output_loading_info=True, **trusted)
torch.nn.Module.float(model)
processor = AutoProcessor.from_pretrained(folder, **trusted)
asked = processor(images=Image.new("RGB", (90, 60), (200, 10, 10)), text="What?", return_tensors="pt")
reference = load_file(INPUTS)
inputs = {"pixel_values": reference["images"]}
inputs |= {name: reference[name] for name in ("input_ids", "image_masks", "image_input_idx")}
with torch.inference_mode():
    logits = model(**inputs, use_cache=False).logits
said = model.generate(**asked, max_new_tokens=4, do_sample=False)[0, -4:].tolist()
pictures = AutoImageProcessor.from_pretrained(folder, **trusted)
home = [type(each).__module__.split(".")[0] for each in (model, model.config, processor, pictures)]
trouble = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
torch.save({"logits": logits, "said": said, "home": home, "trouble": trouble}, output)
""".replace("INPUTS", repr(str(REFERENCE / "reference.safetensors")))


def loaded(folder: Path, scratch: Path, way: str) -> dict[str, Any]:
    """What a process of its own makes of the folder: `alone`, trusting its code, `with` this project, or by its
    runtime, `fast`."""
    scratch.mkdir(exist_ok=True)
    run_apart(LOAD, folder, scratch / way, way, project=way != "alone")
    return dict(torch.load(scratch / way))


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors*"))}


@pytest.fixture(scope="module")
def source(shared: Path) -> Path:
    """The reference as its Hub repo would be: float32 in torch's files, with tokenizer and processor."""
    folder = shared / "molmoe" / "source"
    with FileLock(shared / "molmoe.lock"):
        if not folder.exists():
            as_torch_files(with_processor(folder))
    return folder


@pytest.fixture(scope="module")
def quantized(shared: Path, source: Path) -> Path:
    folder = shared / "molmoe" / "quantized"
    with FileLock(shared / "molmoe.lock"):
        if not folder.exists():
            pipeline.quantize(str(source), folder, RECIPE)
    return folder


def test_it_loads_by_itself_and_with_this_project_and_computes_with_the_dequantized_weights(tmp_path: Path) -> None:
    # In bfloat16, in which nothing is rounded on loading; a model stored in float32 auto-round's loader makes float16.
    source, quantized = with_processor(tmp_path / "source"), tmp_path / "quantized"
    pipeline.quantize(str(source), quantized, RECIPE)
    alone, here = (loaded(quantized, tmp_path / "loads", way) for way in ("alone", "with"))
    assert alone["home"] == ["transformers_modules"] * 4
    assert here["home"] == ["mopeq_hub"] * 4
    assert alone["trouble"] == here["trouble"] == {kind: [] for kind in alone["trouble"]}
    assert json.loads((quantized / "config.json").read_text())["architectures"] == ["MolmoeForConditionalGeneration"]
    assert torch.equal(alone["logits"], here["logits"])
    assert alone["said"] == here["said"]

    bitmap = bitmap_of(json.loads((quantized / "mopeq.json").read_text()))
    assert len(set(bitmap.bits.values())) > 1
    unpacked = dequantized(source, quantized, bitmap, RECIPE, tmp_path / "reference")
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (unpacked / name).write_bytes((source / name).read_bytes())
    reference = loaded(unpacked, tmp_path / "reference-loads", "with")["logits"]
    original = load_file(REFERENCE / "reference.safetensors")["logits"]
    largest = reference.abs().max()
    assert (here["logits"] - reference).abs().max() < 1e-5 * largest
    fast = loaded(quantized, tmp_path / "loads", "fast")
    assert (fast["logits"] - reference).abs().max() < 1e-5 * largest
    assert fast["said"] == here["said"]
    assert (here["logits"] - original).abs().max() > 1e-2 * largest


def test_the_repo_brings_the_code_that_loads_it_and_none_of_the_originals(quantized: Path) -> None:
    named = [
        reference.split(".")[0]
        for file in ("config.json", "processor_config.json", "preprocessor_config.json")
        for reference in json.loads((quantized / file).read_text()).get("auto_map", {}).values()
    ]
    assert {"configuration_molmoe", "modeling_molmoe", "processing_molmoe"} <= set(named)
    assert all((quantized / f"{name}.py").is_file() for name in named)


def test_from_safetensors_and_from_torchs_files_comes_the_same(quantized: Path, tmp_path: Path) -> None:
    safe = with_processor(tmp_path / "safe")
    for shard in safe.glob("model-*.safetensors"):
        save_file({name: value.float() for name, value in load_file(shard).items()}, shard)
    pipeline.quantize(str(safe), tmp_path / "quantized", RECIPE)
    ours, theirs = (load_all(folder) for folder in (quantized, tmp_path / "quantized"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def load_all(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def test_a_model_on_the_hub_is_published_while_it_passes_through(
    source: Path, quantized: Path, some_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOPEQ_HOME", str(tmp_path / "mopeq-home"))
    with HubServer(tmp_path / "server") as server, client_pointed_at(server, tmp_path / "home"):
        server.add_repo("alice/molmoe", source)
        monkeypatch.setenv("HF_TOKEN", server.token("alice"))
        made = publish("alice/molmoe", "alice/molmoe-MoPEQ", RECIPE, questions=some_questions, stream=True)
        found = {name: data for name, data in server.files("alice/molmoe-MoPEQ").items() if ".safetensors" in name}
    assert found == weights(quantized)
    assert made.fidelity is not None
    assert made.fidelity["method"] == "blocks"
    assert 0 < made.fidelity["kl"]["mean"] < 0.1
    assert not list((tmp_path / "mopeq-home").rglob("*.bin"))


def test_at_full_size_headers_are_enough_for_a_plan(tmp_path: Path) -> None:
    model = open_model(str(full_size(tmp_path)))
    layout = model.layout
    assert len(layout.experts) == 1024
    assert sum(matrix.size for matrix in layout.routed) == 6_442_450_944
    assert model.checkpoint.nbytes == 4 * 7_221_875_712
    assert (layout.layer_count, layout.experts_per_token, layout.ignored, layout.routing.trouble) == (16, 8, (), "")
    assert [matrix.name.rpartition(".")[2] for matrix in layout.rest[:3]] == ["q_proj", "k_proj", "v_proj"]
    width = {expert: (2, 3, 4)[expert.index % 3] for expert in layout.experts}
    bits = {(matrix.expert, str(matrix.projection)): width[matrix.expert] for matrix in layout.routed if matrix.expert}
    units = plan_units(model.checkpoint, layout, BitMap(bits), Recipe(group_size=128))
    planned = [tensor for shard in output_shards(units) for tensor in shard.tensors]
    packed = [tensor for tensor in planned if tensor.name.endswith(".qweight") and ".experts." in tensor.name]
    assert len(packed) == 3 * 1024
    assert sum(tensor.nbytes for tensor in packed) * 8 == sum(
        matrix.size * width[matrix.expert] for matrix in layout.routed if matrix.expert
    )


def test_a_dense_molmo_is_no_mixture_of_experts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "molmo", "hidden_size": 64}))
    with pytest.raises(MopeqError, match=r"molmo.* is not a mixture of experts"):
        open_model(str(tmp_path))
