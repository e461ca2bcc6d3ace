"""DeepSeek-VL2's processor gives what the original's gives, case by case, to the bit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor

import mopeq_hub  # noqa: F401

FOLDER = Path(__file__).parent.parent / "assets" / "deepseek-vl2-processor"
CASES = json.loads((FOLDER / "cases.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(FOLDER)


def pictures(case: str) -> list[Image.Image]:
    return [Image.open(FOLDER / name) for name in CASES[case]["images"]]


def assert_same(found: Any, case: str) -> None:
    expected = load_file(FOLDER / f"{case}.safetensors")
    expected["pixel_values"] = expected.pop("images")
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("case", CASES)
def test_conversations_as_the_original_takes_them(processor, case):
    conversation = CASES[case]["conversation"]
    assert_same(processor(conversations=conversation, images=pictures(case), return_tensors="pt"), case)
    text = processor.apply_chat_template(conversation)
    assert text.replace("<image>", "") == CASES[case]["prompt"]
    assert_same(processor(text=text, images=pictures(case) or None, return_tensors="pt"), case)
    without_beginning = text.removeprefix(processor.tokenizer.bos_token)
    assert_same(processor(text=without_beginning, images=pictures(case), return_tensors="pt"), case)


def test_conversations_as_transformers_takes_them(processor):
    question = [
        {"type": "image", "image": pictures("one_wide")[0]},
        {"type": "text", "text": "What is in this picture?"},
    ]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "add_generation_prompt": True}
    asked = [{"role": "user", "content": question}]
    assert_same(processor.apply_chat_template(asked, **options), "one_wide")
    talk = [
        {"role": "user", "content": [{"type": "text", "text": "Describe the image. "}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "It shows a red circle."}]},
        {"role": "user", "content": "Anything else?"},
    ]
    images = {"images": pictures("one_tall_system")}
    assert_same(processor.apply_chat_template(talk, **options, processor_kwargs=images), "one_tall_system")


def test_an_answer_follows_the_prompt_and_ends(processor):
    asked = [{"role": "user", "content": "Anything else?"}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
    whole = processor.apply_chat_template([*asked, {"role": "assistant", "content": " (No.) "}])
    assert whole == prompt + "(No.)" + processor.tokenizer.eos_token
    ids = processor(text=[prompt, whole])["input_ids"]
    length = len(processor(text=prompt)["input_ids"][0])
    assert ids[1, :length].tolist() == ids[0, -length:].tolist()


def test_rows_of_a_batch_are_padded_on_the_left_and_are_what_they_are_alone(processor):
    names = ["one_wide", "text_only", "three_images_no_tiling"]
    texts = [processor.apply_chat_template(CASES[name]["conversation"]) for name in names]
    nested = [pictures(name) for name in names]
    flat = [picture for row in nested for picture in row]
    for images in (nested, flat):
        batch = processor(text=texts, images=images, return_tensors="pt")
        for number, name in enumerate(names):
            alone = load_file(FOLDER / f"{name}.safetensors")
            tokens, tiles = alone["input_ids"].shape[1], alone["images"].shape[1]
            crops = alone["images_spatial_crop"].shape[1]
            for key in ("input_ids", "attention_mask", "images_seq_mask"):
                assert torch.equal(batch[key][number, -tokens:], alone[key][0]), key
            assert not batch["attention_mask"][number, :-tokens].any()
            assert set(batch["input_ids"][number, :-tokens].tolist()) <= {processor.tokenizer.pad_token_id}
            assert torch.equal(batch["pixel_values"][number, :tiles], alone["images"][0])
            assert not batch["pixel_values"][number, tiles:].any()
            assert torch.equal(batch["images_spatial_crop"][number, :crops], alone["images_spatial_crop"][0])
            assert not batch["images_spatial_crop"][number, crops:].any()


def test_saved_and_loaded_it_does_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is type(processor)
    for case in CASES:
        conversation = CASES[case]["conversation"]
        assert_same(again(conversations=conversation, images=pictures(case), return_tensors="pt"), case)


@pytest.mark.parametrize("size", [(1000, 1), (1, 1000), (1, 1), (500, 499), (3, 700), (700, 3), (57, 111)])
def test_pictures_of_any_form_have_the_positions_their_tiles_need(processor, size):
    found = processor(text="<image>", images=Image.new("RGB", size, (9, 200, 30)), return_tensors="pt")
    across, down = found["images_spatial_crop"][0, 0].tolist()
    assert found["pixel_values"].shape == (1, 1 + across * down, 3, 56, 56)
    # 56 pixels are 4 patches, 2 tokens a side.
    assert int(found["images_seq_mask"].sum()) == 2 * 3 + 1 + down * 2 * (across * 2 + 1)
    assert (found["pixel_values"][0] > 0.5).any()


def test_other_sizes_come_from_the_file(tmp_path):
    for path in FOLDER.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((FOLDER / "processor_config.json").read_text("utf-8"))
    config |= {"candidate_resolutions": [[70, 70], [140, 70]], "patch_size": 10, "image_mean": [0.1, 0.2, 0.3]}
    (tmp_path / "processor_config.json").write_text(json.dumps(config), "utf-8")
    found = AutoProcessor.from_pretrained(tmp_path)(text="<image>", images=Image.new("RGB", (300, 60)))
    assert found["pixel_values"].shape == (1, 3, 3, 70, 70)
    # 7 patches a side are padded to 8: 4 tokens.
    assert int(found["images_seq_mask"].sum()) == 4 * 5 + 1 + 4 * 9
    padding = found["pixel_values"][0, 0, :, 0, 0] * 0.5 + np.array([0.1, 0.2, 0.3])
    assert padding * 255 == pytest.approx([25, 51, 76], abs=1e-4)


def test_pictures_come_as_files_arrays_and_in_any_mode(processor):
    expected = load_file(FOLDER / "one_wide.safetensors")["images"]
    opened = pictures("one_wide")[0]
    for picture in (FOLDER / "a.png", str(FOLDER / "a.png"), np.asarray(opened), opened.convert("RGBA")):
        assert torch.equal(processor(text="<image>", images=picture, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize(
    ("inputs", "word"),
    [
        ({"text": "<image> and <image>", "images": [Image.new("RGB", (9, 9))]}, "pictures"),
        ({"text": ["<image>", "x"], "images": [[], [Image.new("RGB", (9, 9))]]}, "pictures"),
        ({"text": "x", "videos": [1]}, "videos"),
        ({}, "either text or conversations"),
    ],
)
def test_what_does_not_fit_together_is_said(processor, inputs, word):
    with pytest.raises(ValueError, match=word):
        processor(**inputs)


def test_another_model_that_names_this_processor_is_refused(tmp_path):
    for path in FOLDER.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = {"model_type": "deepseek_vl_v2", "architectures": ["DeepseekOCRForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ValueError, match="DeepseekOCRForCausalLM"):
        AutoProcessor.from_pretrained(tmp_path)
