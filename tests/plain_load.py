"""Logits of models as a stranger gets them, in a process that has transformers and auto-round and nothing of this
project: importing mopeq_hub, or a library that only it needs, fails there.

`python plain_load.py` reads jobs from standard input, one JSON object a line, and starts a process for each: folders, or
repo@revision, a file of inputs, and one for what they give. It has imported what takes long by then.
"""

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


class _Absent:
    """Makes packages unimportable, as if they were not installed."""

    names = ("mopeq_hub", "numba", "typer", "jsonschema")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not installed here")
        return None


_ABSENT = _Absent()
sys.meta_path.insert(0, _ABSENT)

import torch  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText  # noqa: E402


def main() -> None:
    import auto_round.inference.convert_model  # noqa: F401

    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                work(job)
            except BaseException:
                Path(job["output"]).with_suffix(".error").write_text(traceback.format_exc())
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        print(json.dumps({"status": os.waitstatus_to_exitcode(status)}), flush=True)


def work(job: dict[str, Any]) -> None:
    """Load each of the job's folders in turn. What needs this project's help is loaded with it where `helped` says."""
    if job["helped"]:
        sys.meta_path.remove(_ABSENT)
        import mopeq_hub  # noqa: F401
    inputs = torch.load(job["inputs"])
    torch.save([answer(folder, inputs) for folder in job["folders"]], job["output"])


def answer(folder: str, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
    name, _, revision = (folder, "", "") if Path(folder).is_dir() else folder.partition("@")
    options = {"revision": revision} if revision else {}
    text_alone = AutoConfig.from_pretrained(name, **options).architectures[0].endswith("ForCausalLM")
    auto_class: Any = AutoModelForCausalLM if text_alone else AutoModelForImageTextToText
    loaded: Any = auto_class.from_pretrained(name, output_loading_info=True, **options)
    model, info = loaded
    # auto-round's loader chooses half precision; what was loaded is compared in float32,
    # past the refusal that transformers puts before changing the dtype of a quantized model.
    torch.nn.Module.float(model)
    given = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.inference_mode():
        logits = model(**given, use_cache=False).logits.float()
    trouble = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    return {"logits": logits, "trouble": trouble}


if __name__ == "__main__":
    main()
