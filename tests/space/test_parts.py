"""What the app does where a model is broken or has a processor that needs torchvision; its card, its table."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tests.families.test_every_family import save
from tests.report.documents import fidelity, manifest
from tests.space.conftest import MODEL, Load


def test_a_model_that_cannot_be_loaded_says_why_in_words(load: Load) -> None:
    process = load("model_process").ModelProcess("quantized", load("publication").Publication.read().model, "AutoModel")
    *_, last = process.ask(None, "what ?", load("answer").Settings())
    assert last.failed
    assert last.text == ""
    assert last.status.startswith("The quantized model could not be loaded. ")
    assert "\n" not in last.status


def test_the_card_shows_its_plots_and_asks_no_other_host_for_a_picture(load: Load, model_folder: Path) -> None:
    from PIL import Image

    (model_folder / "plots").mkdir()
    Image.new("RGB", (2, 2)).save(model_folder / "plots" / "bits.png")
    card = (
        "---\nlicense: mit\n---\n# A card\n\n![Bit map](plots/bits.png) ![gone](plots/gone.png) "
        "![up](../../secret.png) ![tracker](https://example.org/p.png) see [mopeq.json](mopeq.json), [Hub](https://hf.co)\n"
    )
    (model_folder / "README.md").write_text(card, "utf-8")
    publication = load("publication")
    shown = publication.Publication.read().card()
    assert "![Bit map](data:image/png;base64,iVBOR" in shown
    assert shown.count("![") == 1
    assert shown.startswith("# A card\n")
    assert shown.endswith("[tracker](https://example.org/p.png) see mopeq.json, [Hub](https://hf.co)\n")
    assert publication.Place("me/m", "v1").link == "https://huggingface.co/me/m"


def test_the_page_leads_to_the_model_to_the_source_commit_and_to_the_run_that_made_it(load: Load) -> None:
    publication = load("publication")
    places = publication.Place("me/quantized", "v1"), publication.Place("maker/model", "c0ffee" * 6)
    made = publication.Publication("name", *places, "AutoModel", "<b>*title*", "https://github.com/me/p/actions/runs/1")
    shown = load("app").introduction(made)
    assert "the same question: " in shown, "of a model of text alone"
    seeing = dataclasses.replace(made, takes_pictures=True)
    assert "the same question about the same picture: " in load("app").introduction(seeing)
    assert "[me/quantized](https://huggingface.co/me/quantized)" in shown
    assert f"[c0ffeec0ffee](https://huggingface.co/maker/model/tree/{'c0ffee' * 6})" in shown
    assert "[this workflow run](https://github.com/me/p/actions/runs/1)" in shown
    assert "<b>" not in shown
    hostile = dataclasses.replace(made, run="javascript:alert(1)")
    assert "workflow run" not in load("app").introduction(hostile)


def test_without_an_original_there_is_one_side_and_nothing_to_hide(load: Load) -> None:
    publication = load("publication").Publication.read()
    labels = {"Blind", "Left answer", "Right answer", "Answer"}
    for original, expected in (
        (publication.original, {"Blind", "Left answer", "Right answer"}),
        (None, {"Answer"}),
    ):
        page = load("app").build(dataclasses.replace(publication, original=original)).get_config_file()
        shown = {each["props"].get("label"): each["id"] for each in page["components"]}
        hidden = {each["id"] for each in page["components"] if not each["props"].get("visible", True)}
        within = inside(page["layout"], hidden)
        assert {label for label, place in shown.items() if label in labels and place not in within} == expected


def inside(layout: dict[str, Any], hidden: set[int], gone: bool = False) -> set[int]:
    """What a page does not show: what is hidden, and what is in something that is."""
    gone = gone or layout.get("id") in hidden
    below = [inside(each, hidden, gone) for each in layout.get("children", [])]
    return ({layout["id"]} if gone else set()).union(*below)


def test_a_broken_file_of_the_publication_is_as_good_as_missing(load: Load, model_folder: Path) -> None:
    (model_folder / "fidelity.json").write_bytes(b"{")
    assert load("publication").Publication.read().facts("fidelity.json") is None


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
    answerer = worker.Answerer(str(folder), worker.loader("AutoModelForImageTextToText", False), pictures=True)
    tokenizer = answerer.processor.tokenizer
    answerer.processor = worker.PartsProcessor(
        worker.AutoImageProcessor.from_pretrained(folder), tokenizer, "<|image_pad|>"
    )
    heard: list[dict[str, Any]] = []
    picture = str(MODEL / "images" / "eval-014.png")
    answerer.answer(lambda **message: heard.append(message), picture, "what ?", length=3, temperature=0, seed=0)
    inputs = answerer.prepare(picture, "what ?")
    assert int(inputs["mm_token_type_ids"].sum()) == int(inputs["image_grid_thw"].prod()) // 4
    assert heard[-1]["event"] == "done"


def test_a_model_that_could_speak_is_asked_for_text(load: Load, tmp_path: Path) -> None:
    worker = load("worker")
    plain = worker.loader("AutoModelForMultimodalLM", published=False)
    answerer = worker.Answerer(str(save("qwen3_omni_moe", tmp_path)), plain, pictures=True)
    heard: list[dict[str, Any]] = []
    answerer.answer(lambda **message: heard.append(message), None, "what ?", length=3, temperature=0, seed=0)
    assert [each["event"] for each in heard][-1] == "done"
    assert "".join(each.get("text", "") for each in heard)
    assert "pixel_values" in answerer.accepted


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


def test_a_model_of_text_alone_is_asked_without_a_picture(load: Load) -> None:
    import gradio as gr

    tab = load("compare_tab")
    for takes_pictures in (True, False):
        with gr.Blocks() as page:
            (picture, question, *_), _ = tab.controls(takes_pictures, both=True)
        assert picture.parent.visible is takes_pictures
        (examples,) = [block for block in page.blocks.values() if isinstance(block, gr.Dataset)]
        assert {len(sample) for sample in examples.samples} == {1 + takes_pictures}
        assert question.value == examples.samples[0][-1]
