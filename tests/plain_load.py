"""`python plain_load.py FOLDER INPUTS OUTPUT [DTYPE]`: logits of a model as a stranger gets them.

A process that has transformers and auto-round and nothing of this project: importing mopeq_hub, or a library that only
it needs, fails here.
"""

import sys
from typing import Any


class _Absent:
    """Makes packages unimportable, as if they were not installed."""

    names = ("mopeq_hub", "numba", "typer", "jsonschema")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not installed here")
        return None


sys.meta_path.insert(0, _Absent())

import torch  # noqa: E402
from transformers import AutoModelForImageTextToText  # noqa: E402


def main() -> None:
    folder, inputs, output, *dtype = sys.argv[1:]
    options: dict = {"dtype": getattr(torch, dtype[0])} if dtype else {}
    loaded: Any = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True, **options)
    model, info = loaded
    given = {
        name: value.to(model.dtype) if value.is_floating_point() else value
        for name, value in torch.load(inputs).items()
    }
    with torch.inference_mode():
        logits = model(**given, use_cache=False).logits.float()
    trouble = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")}
    torch.save({"logits": logits, "trouble": trouble}, output)


if __name__ == "__main__":
    main()
