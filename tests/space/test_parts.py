"""What the app does where a model is missing, too large, broken, or has a processor that needs torchvision."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mopeq_hub.space import render_space
from tests.report.documents import fidelity, manifest

MODEL = Path(__file__).parents[1] / "assets" / "shapes-moe-vl"
Load = Callable[[str], ModuleType]


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def load(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Imports a module of a Space rendered beside the folder `published`, whose original is the small trained model."""
    render_space(tmp_path / "space", manifest(), "../published", str(MODEL), None)
    monkeypatch.syspath_prepend(str(tmp_path / "space"))
    before = set(sys.modules)
    yield importlib.import_module
    names = {path.stem for path in (tmp_path / "space").glob("*.py")}
    for name in names & (set(sys.modules) - before):
        del sys.modules[name]


def test_an_original_that_does_not_fit_leaves_the_quantized_model_to_answer_alone(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison, answer = load("comparison"), load("model_process").Answer
    monkeypatch.setattr(comparison, "available_memory", lambda: 1_000_000_000)
    monkeypatch.setattr(comparison.ModelProcess, "ask", lambda self, *_: iter([answer(f"from {self.name}")]))
    [(original, quantized)] = comparison.Comparison(load("publication").Publication.read()).ask(None, "what ?", 8)
    assert quantized.text == "from quantized"
    assert original.text == ""
    assert original.status == (
        "The original needs about 0.71 GB of memory and this machine has 0.30 GB left beside the quantized model, "
        "so the quantized model answers alone."
    )


def test_a_model_that_cannot_be_loaded_says_why_in_words(load: Load) -> None:
    process = load("model_process").ModelProcess("quantized", load("publication").Publication.read().model, "AutoModel")
    *_, last = process.ask(None, "what ?", 8)
    assert last.text == ""
    assert last.status.startswith("The quantized model could not be loaded. ")
    assert "\n" not in last.status


def test_the_card_loses_its_metadata_and_the_links_that_lead_nowhere(load: Load, model_folder: Path) -> None:
    card = "---\nlicense: mit\n---\n# A card\n\n![Bit map](plots/bits.png) see [mopeq.json](mopeq.json), [Hub](https://hf.co)\n"
    (model_folder / "README.md").write_text(card, "utf-8")
    publication = load("publication")
    assert publication.Publication.read().card() == "# A card\n\n see mopeq.json, [Hub](https://hf.co)\n"
    assert publication.Place("me/m", "v1").link == "https://huggingface.co/me/m"


def test_files_of_the_publication_that_are_broken_are_as_good_as_missing(load: Load, model_folder: Path) -> None:
    (model_folder / "plots").mkdir()
    (model_folder / "plots" / "bits.png").write_bytes(b"no picture")
    (model_folder / "fidelity.json").write_bytes(b"{")
    publication = load("publication").Publication.read()
    assert list(publication.pictures()) == []
    assert publication.facts("fidelity.json") is None


def test_the_fidelity_table_sets_the_publication_beside_what_it_was_compared_with(load: Load) -> None:
    headers, rows = load("fidelity").table(fidelity(manifest(), accuracy=True), 3.3)
    assert headers == ["Measure", "This publication", "uniform 2 bits", "uniform 3 bits", "uniform 4 bits"]
    assert rows[0][:2] == ["Bits per expert weight", "3.30"]
    assert rows[1][:2] == ["KL divergence, mean", "0.04137"]
    assert rows[-1][:2] == ["Exact answers (original 95.0%)", "94.2%"]
    assert {len(row) for row in rows} == {5}


def test_the_space_variable_for_memory_is_a_limit(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = load("machine")
    monkeypatch.setattr(machine, "_used_here", lambda: 10**9)
    monkeypatch.setenv("MEMORY", "1Gi")
    assert machine.available_memory() <= 2**30 - 10**9


def test_a_processor_that_needs_torchvision_is_put_together_from_its_parts(load: Load, tmp_path: Path) -> None:
    folder = tmp_path / "qwen"
    write_tiny_qwen(folder)
    worker = load("worker")
    answerer = worker.Answerer(str(folder), None, "AutoModelForImageTextToText")
    tokenizer = answerer.processor.tokenizer
    answerer.processor = worker.PartsProcessor(
        worker.AutoImageProcessor.from_pretrained(folder), tokenizer, "<|image_pad|>"
    )
    heard: list[dict[str, Any]] = []
    answerer.answer(lambda **message: heard.append(message), str(MODEL / "images" / "eval-014.png"), "what ?", 3)
    inputs = answerer.prepare(str(MODEL / "images" / "eval-014.png"), "what ?")
    assert int(inputs["mm_token_type_ids"].sum()) == int(inputs["image_grid_thw"].prod()) // 4
    assert heard[-1]["event"] == "done"


def write_tiny_qwen(folder: Path) -> None:
    """A small random Qwen3-VL-MoE with the files that its Hub repos have."""
    from transformers import AutoTokenizer, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    marks = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": marks})
    tokenizer.chat_template = (
        "{% for part in messages[0].content %}{% if part.type == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}{% endfor %}"
    )
    image, video, start, end = (tokenizer.get_vocab()[mark] for mark in marks)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    text = {"hidden_size": 32, "moe_intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "vocab_size": 256}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 32}
    config = Qwen3VLMoeConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**vision, "deepstack_visual_indexes": [0]},
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )
    Qwen3VLMoeForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    sizes = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2}
    pictures = {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor", **sizes}
    pictures |= {"size": {"longest_edge": 65536, "shortest_edge": 4096}}
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures), "utf-8")
