"""However little is computed for it, a model on the meta device has the tensors that it would have."""

from typing import Any

import pytest
import torch
import transformers

from mopeq_hub.families.meta import build
from tests.families import zoo


def tensors_of(model: torch.nn.Module) -> dict[str, tuple[Any, ...]]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: (tuple(value.shape), value.dtype, value.device.type) for name, value in named}


@pytest.mark.parametrize(
    "name",
    [
        "qwen3_vl_moe",  # Rotary frequencies, of text and pictures.
        "llama4",  # A parameter that is drawn while the model is made.
        "nemotron_h",  # Parameters computed from whole numbers.
        "gemma4",  # Numbers that meet zeros, so that it is built twice.
    ],
)
def test_it_has_the_tensors_of_one_that_is_built_plainly(name: str) -> None:
    seeing = zoo.takes_pictures(name)
    auto_class = transformers.AutoModelForImageTextToText if seeing else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        plain = auto_class.from_config(zoo.config_of(name), dtype=torch.bfloat16)
    built = build(auto_class, zoo.config_of(name), dtype=torch.bfloat16)
    assert tensors_of(built) == tensors_of(plain)
    assert list(built.state_dict()) == list(plain.state_dict())
    assert built.all_tied_weights_keys == plain.all_tied_weights_keys
    assert {kind for *_, kind in tensors_of(built).values()} == {"meta"}


def test_what_cannot_be_built_says_so() -> None:
    class Wrong:
        @staticmethod
        def from_config(config: Any) -> None:
            raise RuntimeError("there is no such model")

    with pytest.raises(RuntimeError, match="there is no such model"):
        build(Wrong, None)
