"""Qwen3-Omni as a whole: its thinker is quantized, what speaks beside it stays as it is, and the thinker may be loaded
alone from the same files."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from mopeq_hub import Recipe, quantize
from mopeq_hub.manifest import bitmap_of
from mopeq_hub.model import open_model
from tests.apart import run_apart
from tests.families import zoo
from tests.families.test_every_family import ROUNDING, save
from tests.families.test_published_form import unpacked

RECIPE = Recipe(group_size=32, rest_bits=8)
NAME = "qwen3_omni_moe"
WHOLE = """
import sys
import torch
from transformers import AutoModelForMultimodalLM
folder, output = sys.argv[1:]
model = AutoModelForMultimodalLM.from_pretrained(folder)
torch.nn.Module.float(model)
with torch.inference_mode():
    states = torch.linspace(-1, 1, 6 * 64).view(1, 6, 64)
    made = model.talker.model(inputs_embeds=states, use_cache=False).last_hidden_state
    heard = model.code2wav(torch.arange(20).view(1, 4, 5))
    said = model.generate(input_ids=torch.arange(5, 9)[None], return_audio=False, thinker_max_new_tokens=4)
torch.save({"made": made, "heard": heard, "said": said}, output)
"""
ALONE = """
import sys
import mopeq_hub
import torch
from transformers import Qwen3OmniMoeThinkerForConditionalGeneration
folder, output, inputs = sys.argv[1:]
model, info = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
torch.nn.Module.float(model)
with torch.inference_mode():
    logits = model(**torch.load(inputs), use_cache=False).logits
torch.save({"logits": logits, "trouble": {kind: names for kind, names in info.items() if names}}, output)
"""


@dataclass(frozen=True)
class Published:
    source: Path
    folder: Path
    reference: torch.nn.Module


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("omni")
    source = save(NAME, folder / "source")
    repo = quantize(str(source), folder / "quantized", RECIPE)
    return Published(source, repo.folder, unpacked(source, repo.folder, bitmap_of(repo.manifest), RECIPE))


def test_the_talker_and_its_sound_are_what_they_were(published: Published, tmp_path: Path) -> None:
    run_apart(WHOLE, published.folder, tmp_path / "ours.pt")
    run_apart(WHOLE, published.source, tmp_path / "theirs.pt")
    ours, theirs = (torch.load(tmp_path / name) for name in ("ours.pt", "theirs.pt"))
    for part in ("made", "heard"):
        assert theirs[part].std() > 0
        assert torch.equal(ours[part], theirs[part])
    assert ours["said"].shape == (1, 8)


def test_the_thinker_alone_is_found_by_its_own_class(published: Published, tmp_path: Path) -> None:
    torch.save(zoo.inputs_of(NAME), tmp_path / "inputs.pt")
    run_apart(ALONE, published.folder, tmp_path / "out.pt", tmp_path / "inputs.pt", project=True)
    found = torch.load(tmp_path / "out.pt")
    with torch.inference_mode():
        expected = published.reference(**zoo.inputs_of(NAME), use_cache=False).logits
    assert found["trouble"] == {}
    assert (found["logits"] - expected).abs().max() < ROUNDING * expected.abs().max()


def test_what_is_left_is_said(published: Published) -> None:
    model = open_model(str(published.source))
    assert model.takes_pictures
    assert model.parts == "its thinker is quantized; talker and code2wav stay as they are"
    manifest = json.loads((published.folder / "mopeq.json").read_text("utf-8"))
    assert manifest["model"]["task"] == "any-to-any"
    assert manifest["model"]["parts"] == {"speaker": "thinker", "beside": ["talker", "code2wav"]}
    assert all(each["module"].startswith("thinker.model.language_model.layers.") for each in manifest["experts"])
