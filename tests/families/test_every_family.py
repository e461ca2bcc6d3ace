"""Every kind of model in the registry's table: a tiny instance, saved as transformers saves it, quantized with mixed
widths, loaded in a process of its own, computes with the dequantized weights."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mopeq_hub import Recipe, cli, load, quantize
from mopeq_hub.errors import MopeqError
from mopeq_hub.families.base import Family
from mopeq_hub.families.proven import PROVEN, is_proven, summary, table
from mopeq_hub.families.speaking import speaking
from mopeq_hub.families.stated import REFUSED
from mopeq_hub.manifest import bitmap_of
from mopeq_hub.model import open_model
from mopeq_hub.modeling.mends import MENDS, mend_for
from mopeq_hub.runtime.experts import PackedExperts
from tests.apart import run_apart
from tests.families import zoo
from tests.families.test_published_form import PLAIN_LOAD, unpacked
from tests.tiny import SHAPES

RECIPE = Recipe(group_size=32)
ROUNDING = 1e-5
"""Of the largest logit, in float32."""
SUMS = 1e-4
"""The same where sums are made in another order."""


def save(name: str, folder: Path) -> Path:
    import transformers

    auto_class = (
        transformers.AutoModelForMultimodalLM if zoo.takes_pictures(name) else transformers.AutoModelForCausalLM
    )
    torch.manual_seed(0)
    model = auto_class.from_config(zoo.config_of(name), dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter, value in model.named_parameters():
            if ".experts." in parameter or "_proj" in parameter:
                value.normal_(0, 0.15)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", *["processor_config.json"] * zoo.takes_pictures(name)):
        shutil.copyfile(SHAPES / file, folder / file)
    return folder


@pytest.mark.parametrize("name", zoo.NAMES)
def test_it_loads_and_computes_with_the_dequantized_weights(name: str, tmp_path: Path) -> None:
    source = save(name, tmp_path / "source")
    repo = quantize(str(source), tmp_path / "quantized", RECIPE)
    assert len(set(bitmap_of(repo.manifest).bits.values())) > 1
    model = open_model(str(source))
    assert model.layout.ignored == ()
    (kind,) = (kind for kind in PROVEN if kind.name == name)
    assert any(matrix.index is not None for matrix in model.layout.routed) is kind.fused
    assert is_proven(model.config)
    with torch.inference_mode():
        reference = unpacked(source, repo.folder, bitmap_of(repo.manifest), RECIPE)
        expected = reference(**zoo.inputs_of(name), use_cache=False).logits

    helped = mend_for(model.config["model_type"]) is not None
    torch.save(zoo.inputs_of(name), tmp_path / "inputs.pt")
    script = ("import mopeq_hub\n" if helped else "") + PLAIN_LOAD.read_text("utf-8")
    files = tmp_path / "inputs.pt", tmp_path / "out.pt"
    run_apart(script, *files, repo.folder, project=helped, imported=("auto_round.inference.convert_model",))
    (ours,) = torch.load(files[1])

    assert ours["trouble"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    assert (ours["logits"] - expected).abs().max() < ROUNDING * expected.abs().max()

    fast = speaking(load(repo.folder, dtype=torch.float32))
    assert any(isinstance(module, PackedExperts) for module in fast.modules())
    with torch.inference_mode():
        found = fast(**zoo.inputs_of(name), use_cache=False).logits
    assert (found - expected).abs().max() < SUMS * expected.abs().max()


def test_the_registrys_table_has_what_is_proven_here() -> None:
    # tests/families/test_our_models.py, tests/modeling, tests/families/test_published_form.py
    elsewhere = {"deepseek_vl_v2", "molmo", "switch_transformers"}
    assert sorted(kind.name for kind in PROVEN) == sorted({*zoo.NAMES, *elsewhere})


def test_the_readmes_table_is_written_from_the_registry() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    assert summary() in readme


@pytest.mark.parametrize("family", REFUSED, ids=lambda family: family.model_type)
def test_kinds_that_cannot_be_published_are_refused_by_their_config_alone(family: Family, tmp_path: Path) -> None:
    config = {"model_type": family.model_type, "num_experts": 8, "ffn_config": {"moe_num_experts": 8}}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(MopeqError) as refused:
        open_model(str(tmp_path))
    line = str(refused.value)
    assert line.startswith(f"{tmp_path.name} is a mixture of experts of a kind not supported yet: {family.refused}")
    assert "\n" not in line
    assert family.refused in table()


def test_every_kind_is_listed_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["families", "--json"])
    listed = json.loads(capsys.readouterr().out)["families"]
    assert [(kind["model_type"], kind["text_model_type"]) for kind in listed] == [
        (kind.model_type, kind.text_model_type) for kind in PROVEN
    ]
    assert {kind["model_type"] for kind in listed if "import mopeq_hub`, then" in kind["loads"]} == set(MENDS)
