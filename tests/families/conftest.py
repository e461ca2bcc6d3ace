import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

PLAIN_LOAD = Path(__file__).parent.parent / "plain_load.py"


class PlainLoader:
    """Loads models as a stranger does, those of each call in a process of their own (`tests/plain_load.py`)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PLAIN_LOAD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def answers(
        self, folders: list[Path], inputs: dict[str, torch.Tensor], scratch: Path, helped: bool = False
    ) -> list[dict[str, Any]]:
        """What one process gets from each: `logits`, and what the loader said as `trouble`. helped: whether it imports
        mopeq_hub."""
        assert self._process.stdin is not None and self._process.stdout is not None
        given, output = scratch / "inputs.pt", scratch / "out.pt"
        torch.save(inputs, given)
        job = {"inputs": str(given), "output": str(output), "folders": list(map(str, folders)), "helped": helped}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        while not (line := self._process.stdout.readline()).startswith('{"status"'):
            assert line, "the loading process ended"
        assert json.loads(line)["status"] == 0, output.with_suffix(".error").read_text()
        return list(torch.load(output))

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def plain_loader() -> Iterator[PlainLoader]:
    loader = PlainLoader()
    yield loader
    loader.end()
