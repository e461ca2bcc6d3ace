"""MolmoE's processor makes of pictures and text what the original preprocessing made of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from transformers import AutoProcessor

from mopeq_hub.modeling.molmoe.image_processing_molmoe import MolmoImageProcessor
from mopeq_hub.modeling.molmoe.processing_molmoe import MolmoProcessor
from tests.modeling.molmoe import SPECIAL, small, tokenizer, with_processor

CASES = Path(__file__).parents[1] / "assets" / "molmoe-processor"
ORIGINAL_IDS = {"<im_start>": 500, "<im_end>": 501, "<im_patch>": 502, "<im_col>": 503}
EOS, PAD, START, END, PATCH, COLUMN = range(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_processor(tmp_path_factory.mktemp("molmoe"))


@pytest.fixture(scope="module")
def processor(folder: Path) -> Any:
    found = AutoProcessor.from_pretrained(folder)
    assert type(found) is MolmoProcessor
    return found


def picture(width: int, height: int) -> Image.Image:
    values = np.arange(height * width * 3).reshape(height, width, 3) % 251
    return Image.fromarray(values.astype(np.uint8))


@pytest.mark.parametrize("case", json.loads((CASES / "cases.json").read_text()), ids=lambda case: case["name"])
def test_a_picture_becomes_what_the_original_made_of_it(case: dict[str, Any]) -> None:
    expected = load_file(CASES / f"{case['name']}.safetensors")
    processor = MolmoProcessor(MolmoImageProcessor(**case["settings"]), tokenizer())
    made = processor(images=Image.open(CASES / f"{case['name']}.png"), text="?", return_tensors="np")
    count = len(expected["tokens"])
    ours = {ORIGINAL_IDS[SPECIAL[number]]: number for number in range(START, COLUMN + 1)}
    assert made["input_ids"][0, 0] == EOS
    assert made["input_ids"][0, 1 : count + 1].tolist() == [ours[number] for number in expected["tokens"].tolist()]
    places = np.where(expected["image_input_idx"] < 0, -100, expected["image_input_idx"] + 1)
    assert np.array_equal(made["image_input_idx"][0], places)
    assert np.array_equal(made["image_masks"][0], expected["image_masks"])
    assert np.abs(made["pixel_values"][0] - expected["images"].astype(np.float32)).max() < 2e-3
    assert made["pixel_values"].dtype == np.float32


def test_a_question_becomes_a_prompt_with_roles(processor: Any) -> None:
    made = processor(text="How many?", return_tensors="pt")
    assert processor.tokenizer.decode(made["input_ids"][0]) == "<|endoftext|> User: How many? Assistant:"
    assert "pixel_values" not in made
    bare = processor(text="How many?", message_format=None, return_tensors="pt")
    assert processor.tokenizer.decode(bare["input_ids"][0]) == "<|endoftext|>How many?"


def test_every_feature_goes_to_a_patch_token_and_every_patch_token_has_one(processor: Any) -> None:
    made = processor(images=picture(130, 60), text="What?", return_tensors="pt")
    places = made["image_input_idx"][made["image_input_idx"] >= 0]
    assert sorted(places.tolist()) == (made["input_ids"][0] == PATCH).nonzero().flatten().tolist()
    # The whole, then two crops side by side: their rows run through both.
    assert made["pixel_values"].shape == (1, 3, 16, 588)
    tokens = made["input_ids"][0].tolist()
    assert tokens[1:9] == [START, PATCH, PATCH, COLUMN, PATCH, PATCH, COLUMN, END]
    assert tokens[9:21] == [START, *[PATCH] * 4, COLUMN, *[PATCH] * 4, COLUMN, END]
    assert made["image_input_idx"][0].tolist()[1:] == [[10, 11, 15, 16], [12, 13, 17, 18]]


def test_the_chat_template_says_what_a_question_becomes(processor: Any) -> None:
    content = [{"type": "image"}, {"type": "text", "text": "What?"}]
    asked = [{"role": "user", "content": content}]
    prompt = processor.apply_chat_template(asked, add_generation_prompt=True)
    by_template = processor(images=picture(60, 60), text=prompt, return_tensors="pt")
    plain = processor(images=picture(60, 60), text="What?", return_tensors="pt")
    assert all(torch.equal(by_template[name], plain[name]) for name in plain)
    answered = [*asked, {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]}]
    whole = processor.apply_chat_template(answered)
    assert whole == prompt + " A cat.<|endoftext|>"
    again = processor.apply_chat_template([*answered, {"role": "user", "content": "Sure?"}])
    assert again == whole + " User: Sure? Assistant:"
    # What a processor is not asked about, since there is no picture, the tokenizer makes the same of.
    text = processor.apply_chat_template([{"role": "user", "content": "What?"}])
    assert processor.tokenizer(text).input_ids == processor(text="What?")["input_ids"][0].tolist()


def test_a_conversation_becomes_inputs_at_once(processor: Any) -> None:
    asked = [
        {"role": "user", "content": [{"type": "image", "image": picture(60, 60)}, {"type": "text", "text": "What?"}]}
    ]
    made = processor.apply_chat_template(
        asked, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    plain = processor(images=picture(60, 60), text="What?", return_tensors="pt")
    assert all(torch.equal(made[name], plain[name]) for name in plain)


def test_several_pictures_come_one_after_another_or_where_the_text_has_them(processor: Any) -> None:
    two = [picture(60, 60), picture(130, 60)]
    first = processor(images=two, text="Which?", return_tensors="pt")
    places = first["image_input_idx"][first["image_input_idx"] >= 0]
    assert sorted(places.tolist()) == (first["input_ids"][0] == PATCH).nonzero().flatten().tolist()
    between = processor(images=two, text="<|image|> or <|image|>?", return_tensors="pt")
    tokens = between["input_ids"][0].tolist()
    ends = [number for number, token in enumerate(tokens) if token == END]
    assert processor.tokenizer.decode(tokens[ends[1] + 1 : ends[1] + 5]) == " or "
    with pytest.raises(ValueError, match="2 pictures do not go with 1"):
        processor(images=two, text="<|image|>?")


def test_rows_of_different_lengths_are_padded_at_the_left(processor: Any) -> None:
    model = small()
    asked, pictures = ["What is it?", "No?"], [picture(60, 60), picture(130, 60)]
    batch = processor(images=pictures, text=asked, return_tensors="pt")
    assert batch["attention_mask"][:, -1].tolist() == [1, 1]
    single = [
        processor(images=each, text=text, return_tensors="pt") for each, text in zip(pictures, asked, strict=True)
    ]
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        alone = torch.cat([model(**each).logits[:, -1] for each in single])
    assert torch.allclose(together, alone, atol=1e-4 * float(alone.abs().max()))
    said = model.generate(**batch, max_new_tokens=5, do_sample=False)[:, -5:]
    assert said.tolist() == [
        model.generate(**each, max_new_tokens=5, do_sample=False)[0, -5:].tolist() for each in single
    ]


def test_it_is_saved_and_loaded(processor: Any, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = MolmoProcessor.from_pretrained(tmp_path)
    before, after = (each(images=picture(90, 70), text="?", return_tensors="pt") for each in (processor, again))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.image_processor.max_crops == 2


def test_pictures_turned_by_their_camera_and_grey_ones_are_looked_at_as_they_are_meant(processor: Any) -> None:
    lying = picture(90, 60)
    exif = Image.Exif()
    exif[0x0112] = 6
    path_like = lying.copy()
    path_like.info["exif"] = exif.tobytes()
    path_like.getexif()[0x0112] = 6
    upright = lying.transpose(Image.Transpose.ROTATE_270)
    turned, expected = (processor.image_processor.crops(each).pixels for each in (path_like, upright))
    assert np.array_equal(turned, expected)
    assert processor.image_processor.crops(lying.convert("L")).pixels.shape[-1] == 588


def test_another_models_tokenizer_is_refused(processor: Any) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1}, unk_token="<unk>")),
        unk_token="<unk>",
        eos_token="</s>",
    )
    with pytest.raises(ValueError, match="lacks <im_patch>"):
        MolmoProcessor(processor.image_processor, other)(images=picture(60, 60), text="?")


def test_settings_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="overlap_margins"):
        MolmoImageProcessor(overlap_margins=[3, 3]).crops(picture(60, 60))
    with pytest.raises(ValueError, match="leave nothing"):
        MolmoImageProcessor(overlap_margins=[12, 12]).crops(picture(60, 60))
