"""A publication loaded by the runtime answers as plain from_pretrained's does, and what people do to models works on
it, or is refused in a line."""

import copy
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from mopeq_hub import MopeqError, Recipe, accelerate, load, quantize
from mopeq_hub.pipeline import push
from mopeq_hub.questions import Question
from mopeq_hub.questions.inputs import Encoder
from mopeq_hub.runtime.experts import PackedExperts
from mopeq_hub.runtime.loading import change_dtype
from mopeq_hub.runtime.modules import PackedLinear, PackedModule
from tests import tiny
from tests.apart import run_apart
from tests.hub import HubServer
from tests.runtime.packed import distance
from tests.tiny import SHAPES

SUMS = 1e-5
"""Of the largest logit, in float32, where sums are made in another order."""
_BOTH_WAYS = """
import sys
import torch
import mopeq_hub
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM
inputs, output, folder = sys.argv[1:]
config = AutoConfig.from_pretrained(folder)
auto_class = AutoModelForImageTextToText
if config.is_encoder_decoder:
    auto_class = AutoModelForSeq2SeqLM
elif config.architectures[0].endswith("ForCausalLM"):
    auto_class = AutoModelForCausalLM
model = auto_class.from_pretrained(folder)
given = torch.load(inputs)
def answer():
    torch.nn.Module.float(model)
    with torch.inference_mode():
        return model(**given, use_cache=False).logits
plain = answer()
assert mopeq_hub.accelerate(model) is model
packed = sum(type(module).__name__.startswith("Packed") for module in model.modules())
torch.save({"plain": plain, "fast": answer(), "packed": packed}, output)
"""


@pytest.fixture(scope="module")
def model(published: Path) -> Any:
    """The bundled publication, float32."""
    found, info = load(published, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return found


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    """A question about a picture."""
    question = Question(SHAPES / "images" / "eval-002.png", "how many cyan shapes are there ?", "one")
    return dict(Encoder(SHAPES).rows([question], with_answer=True)[0].inputs)


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits  # type: ignore[no-any-return]


def test_experts_and_linear_layers_are_packed_and_nothing_is_made_for_an_expert(model: Any) -> None:
    assert sum(isinstance(module, PackedExperts) for module in model.modules()) == 4
    assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 4 * 4
    assert not any("experts.0" in name for name, _ in model.named_modules())


@pytest.mark.parametrize("make", [tiny.llava_over_deepseek_v2, tiny.qwen3_vl_moe, tiny.switch_transformers])
@pytest.mark.parametrize("symmetric", [True, False])
def test_accelerated_it_answers_as_before(make: Any, symmetric: bool, tmp_path: Path) -> None:
    source = make(tmp_path / "source")
    folder = quantize(str(source), tmp_path / "quantized", Recipe(group_size=32, symmetric=symmetric)).folder
    picture = None if make is tiny.switch_transformers else SHAPES / "images" / "eval-002.png"
    inputs = Encoder(source).rows([Question(picture, "what is it ?", "a circle")], with_answer=True)[0].inputs
    torch.save(dict(inputs), tmp_path / "inputs.pt")
    run_apart(_BOTH_WAYS, tmp_path / "inputs.pt", tmp_path / "out.pt", folder, project=True)
    found = torch.load(tmp_path / "out.pt")
    assert found["packed"] > 2
    assert distance(found["fast"], found["plain"]) < SUMS
    assert distance(logits(load(folder, dtype=torch.float32), dict(inputs)), found["plain"]) < SUMS


def test_with_the_cache_it_says_what_it_says_without(model: Any, asked: dict[str, Any]) -> None:
    said = [
        model.generate(**asked, max_new_tokens=8, do_sample=False, use_cache=cached)[0].tolist()
        for cached in (True, False)
    ]
    assert said[0] == said[1]


def test_a_padded_batch_says_what_single_rows_say(model: Any, published: Path) -> None:
    processor = AutoProcessor.from_pretrained(published)
    processor.tokenizer.padding_side = "left"
    texts = ["user : hi", "user : what colour is the large square in the middle ?"]
    batch = processor(text=texts, return_tensors="pt", padding=True)
    together = logits(model, dict(batch))[:, -1]
    alone = torch.cat([logits(model, dict(processor(text=text, return_tensors="pt")))[:, -1] for text in texts])
    assert distance(together, alone) < SUMS


def test_in_bfloat16_activations_are_bfloat16(published: Path, model: Any, asked: dict[str, Any]) -> None:
    halves = load(published)
    assert halves.dtype == torch.bfloat16
    given = {name: value.bfloat16() if value.is_floating_point() else value for name, value in asked.items()}
    found = logits(halves, given)
    assert found.dtype == torch.bfloat16
    assert distance(found, logits(model, asked)) < 0.05


def test_it_is_read_from_the_hub_at_a_revision(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, publication: Path, model: Any, asked: dict[str, Any]
) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token("alice"))
    commit = push(publication, "alice/fast", space=False).commit
    assert logits(load("alice/fast", dtype=torch.float32, revision=commit), asked).equal(logits(model, asked))


def test_saved_it_is_the_same_publication(model: Any, published: Path, asked: dict[str, Any], tmp_path: Path) -> None:
    load(published).save_pretrained(tmp_path / "saved")
    originals = {name: value for file in published.glob("*.safetensors") for name, value in load_file(file).items()}
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == originals.keys()
    assert all(saved[name].equal(originals[name]) for name in saved)
    configs = [json.loads((folder / "config.json").read_text("utf-8")) for folder in (published, tmp_path / "saved")]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]
    assert logits(load(tmp_path / "saved", dtype=torch.float32), asked).equal(logits(model, asked))
    # Its expressions are in the order of the alphabet now, and the first that matches a module still is the right one.
    torch.save(asked, tmp_path / "inputs.pt")
    run_apart(_BOTH_WAYS, tmp_path / "inputs.pt", tmp_path / "out.pt", tmp_path / "saved", project=True)
    assert distance(torch.load(tmp_path / "out.pt")["plain"], logits(model, asked)) < SUMS


def test_copied_and_pickled_it_answers_the_same(published: Path, asked: dict[str, Any]) -> None:
    # One that has answered holds functions of transformers' that cannot be pickled.
    model = load(published, dtype=torch.float32)
    file = io.BytesIO()
    torch.save(model, file)
    expected = logits(model, asked)
    assert logits(copy.deepcopy(model), asked).equal(expected)
    file.seek(0)
    assert logits(torch.load(file, weights_only=False), asked).equal(expected)
    again = copy.deepcopy(model)
    again.load_state_dict(model.state_dict())
    assert logits(again, asked).equal(expected)


def test_another_dtype_leaves_packed_weights_alone(model: Any, asked: dict[str, Any]) -> None:
    changed = copy.deepcopy(model).to(torch.bfloat16).to(torch.float32)
    assert distance(logits(changed, asked), logits(model, asked)) < 0.05
    packed = [name for name in model.state_dict() if name.endswith(("scales", "qweight", "qzeros"))]
    assert all(changed.state_dict()[name].equal(model.state_dict()[name]) for name in packed)


def test_a_quantized_models_dtype_is_changed_with_what_its_configs_say(model: Any, asked: dict[str, Any]) -> None:
    changed = copy.deepcopy(model)
    parts = [changed, changed.model.language_model, changed.model.vision_tower]
    for dtype in (torch.bfloat16, torch.float32):
        change_dtype(changed, dtype)
        assert [(part.dtype, part.config.dtype) for part in parts] == [(dtype, dtype)] * 3
    assert distance(logits(changed, asked), logits(model, asked)) < 0.05


def test_another_device_is_refused(model: Any) -> None:
    with pytest.raises(MopeqError, match=r"on the CPU, not on meta; load it by from_pretrained for a GPU"):
        copy.deepcopy(model).to("meta")


def test_a_gradient_is_refused_where_it_would_be_computed(model: Any, asked: dict[str, Any]) -> None:
    loss = model(**asked, labels=asked["input_ids"]).loss
    with pytest.raises(MopeqError, match="no gradient passes through packed weights"):
        loss.backward()


def test_in_a_compiled_graph_it_is_one_operation(model: Any) -> None:
    experts, linear = (
        next(module for module in model.modules() if isinstance(module, kind)) for kind in (PackedExperts, PackedLinear)
    )
    states, chosen, weights = torch.randn(5, 128), torch.arange(10).view(5, 2), torch.rand(5, 2)
    with torch.no_grad():
        compiled = torch.compile(experts, fullgraph=True, backend="aot_eager")
        assert compiled(states, chosen, weights).equal(experts(states, chosen, weights))
        compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
        assert compiled(states).equal(linear(states))


def test_a_model_that_is_not_quantized_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    original = AutoModelForImageTextToText.from_pretrained(SHAPES)
    before = dict(original.named_modules())
    with caplog.at_level(logging.WARNING, "mopeq_hub"):
        assert accelerate(original) is original
    assert dict(original.named_modules()) == before
    with caplog.at_level(logging.WARNING, "mopeq_hub"):
        assert not any(isinstance(module, PackedModule) for module in load(SHAPES).modules())
    assert caplog.messages == [
        "this model is not quantized; it stays as it is",
        f"{SHAPES} is not quantized; it is loaded as it is",
    ]


def test_accelerated_twice_it_stays_as_it_is(model: Any) -> None:
    assert accelerate(model) is model


def test_a_missing_tensor_is_named(publication: Path) -> None:
    from safetensors.torch import save_file

    file = next(publication.glob("*00002*.safetensors"))
    tensors = load_file(file)
    gone = next(name for name in tensors if ".experts.7.up_proj.qzeros" in name)
    del tensors[gone]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(MopeqError, match=rf"{gone} is not in the model's files; get them again"):
        load(publication)
