"""What a stranger loads is what was written: each family, quantized with mixed widths, in a process without this
project."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mopeq_hub import Recipe, quantize
from mopeq_hub.bitmap import BitMap, width_of
from mopeq_hub.families.speaking import speaking
from mopeq_hub.fidelity.stages import place_of
from mopeq_hub.manifest import bitmap_of
from mopeq_hub.model import open_model
from mopeq_hub.packing import Packed, dequantize
from mopeq_hub.questions import Question
from mopeq_hub.questions.inputs import Encoder
from tests import tiny
from tests.apart import run_apart
from tests.conftest import edit_json

PLAIN_LOAD = Path(__file__).parent.parent / "plain_load.py"
IMAGE = tiny.SHAPES / "images" / "eval-002.png"
ROUNDING = 1e-5
"""Of the largest logit, in float32."""


def shapes(folder: Path) -> Path:
    return tiny.SHAPES


def answers_of(folders: list[Path], inputs: dict[str, torch.Tensor], scratch: Path) -> list[dict[str, Any]]:
    """What one process gets from each."""
    torch.save(inputs, scratch / "inputs.pt")
    run_apart(PLAIN_LOAD, scratch / "inputs.pt", scratch / "out.pt", *folders)
    return list(torch.load(scratch / "out.pt"))


def unpacked(source: Path, quantized: Path, bitmap: BitMap, recipe: Recipe) -> Any:
    """The source's model in its own class, float32, with the values that the packed weights stand for."""
    import transformers
    from safetensors.torch import load_file

    opened = open_model(str(source), trust_remote_code=True)
    layout, options = opened.layout, {"dtype": torch.float32, "trust_remote_code": opened.trusted}
    model = speaking(getattr(transformers, layout.auto_class).from_pretrained(source, **options).eval())
    packed = {name: value for file in quantized.glob("*.safetensors") for name, value in load_file(file).items()}
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for matrix in layout.matrices:
            bits = width_of(matrix, bitmap, recipe)
            if bits == 16:
                continue
            parts = Packed.of(matrix.name, lambda name: packed[name].numpy())
            weight = torch.from_numpy(dequantize(parts, bits, recipe.symmetric))
            place = place_of(matrix, layout)
            place.part(parameters[place.parameter]).copy_(weight)
    return model


def dequantized(source: Path, quantized: Path, bitmap: BitMap, recipe: Recipe, target: Path) -> Path:
    """The same, saved in a folder."""
    unpacked(source, quantized, bitmap, recipe).save_pretrained(target)
    return target


@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        pytest.param(shapes, Recipe(), id="llava over qwen3_moe"),
        pytest.param(
            shapes, Recipe(symmetric=False, rest_bits=16), id="llava over qwen3_moe, asymmetric, the rest at 16 bits"
        ),
        pytest.param(tiny.llava_over_deepseek_v2, Recipe(group_size=32), id="llava over deepseek_v2"),
        pytest.param(tiny.qwen3_vl_moe, Recipe(group_size=32, rest_bits=8), id="qwen3_vl_moe, fused experts"),
        pytest.param(tiny.qwen3_vl_moe, Recipe(group_size=32, granularity="layer"), id="a width a layer"),
        pytest.param(tiny.mixtral, Recipe(group_size=32, granularity="projection"), id="mixtral, text alone"),
        pytest.param(tiny.switch_transformers, Recipe(group_size=32), id="switch_transformers, encoder and decoder"),
        pytest.param(
            tiny.switch_transformers,
            Recipe(group_size=32, granularity="projection", allocator="knapsack", budget="0.5x", rest_bits="auto"),
            id="switch_transformers, a width a projection, the rest at its own",
        ),
        pytest.param(
            tiny.llava_over_deepseek_v2,
            Recipe(group_size=32, granularity="projection", allocator="knapsack", budget="0.5x", rest_bits="auto"),
            id="a width a projection, the rest at 2 and 3 bits, or undivided",
        ),
        pytest.param(
            tiny.llava_over_deepseek_v2,
            Recipe(group_size=32, symmetric=False, allocator="knapsack", budget="0.65x", rest_bits="auto"),
            id="asymmetric, the rest at 8 and 16 bits",
        ),
    ],
)
def test_plain_from_pretrained_computes_with_the_dequantized_weights(
    make: Callable[[Path], Path], recipe: Recipe, tmp_path: Path
) -> None:
    source = make(tmp_path / "source")
    repo = quantize(str(source), tmp_path / "quantized", recipe)
    quantized, manifest = repo.folder, repo.manifest
    bitmap = bitmap_of(manifest)
    assert len({*bitmap.bits.values(), *bitmap.rest.values()}) > 1
    pictures = open_model(str(source)).layout.task == "image-text-to-text"
    question = Question(IMAGE if pictures else None, "how many cyan shapes are there ?", "one")
    inputs = Encoder(source).rows([question], with_answer=True)[0].inputs
    assert ("pixel_values" in inputs) is pictures

    like = dequantized(source, quantized, bitmap, recipe, tmp_path / "reference")
    # What is quantized comes last: auto-round's loader changes transformers for the whole process.
    reference, original, ours = answers_of([like, source, quantized], inputs, tmp_path)

    assert ours["trouble"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    largest = reference["logits"].abs().max()
    assert (ours["logits"] - reference["logits"]).abs().max() < ROUNDING * largest
    assert (ours["logits"] - original["logits"]).abs().max() > 1000 * ROUNDING * largest
    assert reference["home"] == original["home"] == "transformers"
    assert ours.get("said") == reference.get("said")


def test_both_orientations_of_fused_experts_give_the_same_codes(tmp_path: Path) -> None:
    recipe = Recipe(group_size=32)
    one, other = (
        quantize(str(tiny.qwen3_vl_moe(tmp_path / name, transpose)), tmp_path / f"{name}-quantized", recipe)
        for name, transpose in (("as-published", True), ("as-live", False))
    )
    assert all(
        np.array_equal(one.manifest["files"][name]["sha256"], other.manifest["files"][name]["sha256"])
        for name in one.manifest["files"]
        if name.endswith(".safetensors")
    )


def test_the_processor_of_the_published_folder_is_the_sources(published: Path) -> None:
    from PIL import Image
    from transformers import AutoProcessor

    picture = Image.open(IMAGE)
    ours, theirs = (
        AutoProcessor.from_pretrained(folder)(text="user : <image> hi", images=picture, return_tensors="pt")
        for folder in (published, tiny.SHAPES)
    )
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)


def test_code_that_a_source_brings_is_not_taken_over(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny.SHAPES, source, ignore=shutil.ignore_patterns("images", "*.jsonl"))
    (source / "modeling.py").write_text("raise SystemExit('ran')")
    edit_json(source / "config.json", lambda config: config.update(auto_map={"AutoModel": "modeling.Model"}))
    folder = quantize(str(source), tmp_path / "quantized", Recipe()).folder
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    assert not list(folder.glob("*.py"))
