"""A command's own process imports what it uses, and nothing is lost to whoever asks for the rest all the same."""

import json
import subprocess
import sys
from pathlib import Path

from tests.families.headers import LARGE, headers_of

UNUSED = (
    "auto_round", "matplotlib", "numba", "scipy", "sklearn", "sympy",
    "torch._dynamo.convert_frame", "torch._inductor", "torch.distributed.fsdp", "torch.distributed.tensor",
)  # fmt: skip


def printed_by(code: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_plan_of_headers_imports_neither_what_computes_nor_what_compiles(tmp_path: Path) -> None:
    folder = headers_of(tmp_path, *LARGE["ERNIE-4.5-VL-28B"])
    *document, imported = printed_by(
        "import atexit, sys\n"
        "atexit.register(lambda: print(' '.join(sys.modules)))\n"
        "from mopeq_hub.cli import main\n"
        "main()",
        "plan", str(folder), "--json",
    )  # fmt: skip
    assert len(json.loads("".join(document))["choices"]) == 4
    assert "transformers.modeling_utils" in imported.split()
    assert set(UNUSED) & set(imported.split()) == set()


def test_the_compiler_is_there_once_it_is_asked_for_and_knows_what_it_was_told_before() -> None:
    told, before, after, marked, compiled, left = printed_by(
        """
import sys
from mopeq_hub.unneeded import spare
spare()
import torch, transformers.modeling_utils
told = sys.modules["torch._dynamo"]

@torch.compiler.disable
def left(value):
    return torch.compiler.is_compiling(), value + 1

@torch.compiler.disable(recursive=False)
def left_too(value):
    return torch.compiler.is_compiling(), value + 1

@torch._dynamo.assume_constant_result
def two():
    return 2

left(torch.ones(1))
print("convert_frame" in vars(told), "torch._dynamo.convert_frame" in sys.modules)
print(torch._dynamo.config.recompile_limit > 0, torch._dynamo is told)
import torch._dynamo.convert_frame
print(torch._dynamo.convert_frame is vars(told)["convert_frame"])
print(two._dynamo_marked_constant)
print(torch.compile(lambda value: value + two(), backend="eager")(torch.ones(1)).item())
print(torch.compile(lambda value: (left(value), left_too(value)), backend="eager")(torch.ones(1)))
"""
    )
    assert told == "False False"
    assert before == "True True"
    assert after == "True"
    assert marked == "True"
    assert compiled == "3.0"
    assert left == "((False, tensor([2.])), (False, tensor([2.])))"


def test_what_is_imported_already_stays_as_it_is() -> None:
    lines = printed_by(
        "import transformers, sys\n"
        "from mopeq_hub.unneeded import spare\n"
        "before = list(sys.meta_path)\n"
        "spare()\n"
        "print(sys.meta_path == before, transformers.utils.import_utils.is_scipy_available())"
    )
    assert lines == ["True True"]
