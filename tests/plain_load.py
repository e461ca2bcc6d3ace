"""`python plain_load.py INPUTS OUTPUT FOLDER|REPO@REVISION...`: logits of models as a stranger gets them.

A process that has transformers and auto-round and nothing of this project: importing mopeq_hub, or a library that only
it needs, fails here, but for models that need its help, where it was imported before.
"""

import sys
from pathlib import Path
from typing import Any


class _Absent:
    """Makes packages unimportable, as if they were not installed."""

    names = ("mopeq_hub", "numba", "typer", "jsonschema")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not installed here")
        return None


if "mopeq_hub" not in sys.modules:
    sys.meta_path.insert(0, _Absent())

import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
)


def main() -> None:
    inputs, output, *folders = sys.argv[1:]
    torch.save([answer(folder, torch.load(inputs)) for folder in folders], output)


def answer(folder: str, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    name, _, revision = (folder, "", "") if Path(folder).is_dir() else folder.partition("@")
    options: dict[str, Any] = {"revision": revision} if revision else {}
    classes = PreTrainedConfig.get_config_dict(name, **options)[0].get("auto_map", {})
    options |= {"trust_remote_code": True} if classes else {}
    config = AutoConfig.from_pretrained(name, **options)
    auto_class: Any = AutoModelForMultimodalLM
    if config.architectures[0].endswith("ForCausalLM") or "AutoModelForCausalLM" in classes:
        auto_class = AutoModelForCausalLM
    elif config.is_encoder_decoder:
        auto_class = AutoModelForSeq2SeqLM
    loaded: Any = auto_class.from_pretrained(name, output_loading_info=True, **options)
    model, info = loaded
    # auto-round's loader chooses half precision; what was loaded is compared in float32,
    # past the refusal that transformers puts before changing the dtype of a quantized model.
    torch.nn.Module.float(model)
    for module in model.modules():
        if hasattr(module, "config") and hasattr(module, "dtype"):
            module.config.dtype = torch.float32
    given = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.inference_mode():
        # Of models in several parts, the one that answers in text.
        logits = getattr(model, "thinker", model)(**given, use_cache=False).logits.float()
    trouble = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    found = {"logits": logits, "trouble": trouble, "home": type(model).__module__.split(".")[0]}
    if config.is_encoder_decoder:
        asked = {name: value for name, value in given.items() if name != "decoder_input_ids"}
        found["said"] = model.generate(**asked, max_new_tokens=6, do_sample=False)[0].tolist()
    return found


if __name__ == "__main__":
    main()
