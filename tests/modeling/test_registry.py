"""transformers' auto classes find our models wherever mopeq_hub is imported, and importing it imports nothing heavy."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mopeq_hub.modeling import registry

ASSETS = Path(__file__).parent.parent / "assets"
TINY = ASSETS / "deepseek-vl2-tiny-like"

LOOK = f"""
import sys
from transformers import AutoConfig
config = AutoConfig.from_pretrained({str(TINY)!r})
print(type(config).__module__, type(config).__name__, config.get_text_config().hidden_size)
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "code",
    [
        f"import mopeq_hub{LOOK}",
        f"import transformers, mopeq_hub{LOOK}",
        f"from transformers import AutoConfig, AutoProcessor, AutoModelForImageTextToText; import mopeq_hub{LOOK}",
    ],
    ids=["before", "after", "after what it is asked of"],
)
def test_imported_before_transformers_or_after_it_is_found(code):
    module = "mopeq_hub.modeling.deepseek_vl2.configuration_deepseek_vl2"
    assert run(code).split() == [module, "DeepseekVLV2Config", "128"]


def test_no_model_is_imported_before_it_is_asked_for():
    code = (
        "import sys, mopeq_hub\n"
        "print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))\n"
        "from transformers import AutoModelForImageTextToText, AutoProcessor\n"
        "print([name for name in sys.modules if name.startswith('mopeq_hub.modeling') and '.modeling_' in name])"
    )
    assert run(code).split() == ["[]", "[]"]


def test_image_processors_are_found_by_the_names_in_their_files_and_others_as_before(tmp_path):
    from transformers import AutoImageProcessor, CLIPImageProcessorPil

    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "MolmoImageProcessor"}')
    assert type(AutoImageProcessor.from_pretrained(tmp_path)).__module__.startswith("mopeq_hub.modeling.molmoe")
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    assert isinstance(AutoImageProcessor.from_pretrained(tmp_path), CLIPImageProcessorPil)


def test_arranged_twice_nothing_changes():
    code = (
        "import mopeq_hub.modeling.registry, sys\nbefore = list(sys.meta_path)\n"
        "mopeq_hub.modeling.registry.arrange()\nprint(before == sys.meta_path)"
    )
    assert run(code).strip() == "True"


def test_every_file_of_a_model_is_self_contained():
    for added in registry.ADDED:
        for path in (Path(registry.__file__).parent / added.package).glob("*_*.py"):
            if not path.name.startswith("__"):
                assert "mopeq_hub" not in path.read_text("utf-8"), path.name


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"architectures": ["DeepseekOCRForCausalLM"]}, "DeepseekOCRForCausalLM"),
        ({"architectures": None, "vision_config": {"model_name": "deeplip_b_l"}}, "deeplip_b_l"),
    ],
)
def test_what_only_shares_the_model_type_is_refused_in_one_line(tmp_path, changes, word):
    from transformers import AutoConfig

    config = {**json.loads((TINY / "config.json").read_text("utf-8")), **changes}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ValueError, match=word) as refusal:
        AutoConfig.from_pretrained(tmp_path)
    assert "not" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_configuration_may_be_imported_by_itself():
    code = (
        "from mopeq_hub.modeling.molmoe.configuration_molmoe import MolmoeConfig\n"
        "from transformers import AutoModelForImageTextToText, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING\n"
        "print(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[MolmoeConfig].__name__)"
    )
    assert run(code).strip() == "MolmoeForConditionalGeneration"
