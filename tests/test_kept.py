"""What a converter of transformers makes is written as it makes it, wherever the tensors lie that go in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.core_model_loading import Chunk, Concatenate, Transpose, WeightConverter

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.kept import Conversion, Kept, as_tensor
from mopeq_hub.source import FolderSource

ROWS = {"old.query": torch.randn(4, 8).bfloat16(), "old.key": torch.randn(4, 8).bfloat16()}


class NearAlone(FolderSource):
    """Has one file here; of others it gives the parts that are asked for."""

    near = "model-00001-of-00002.safetensors"

    def path(self, name: str) -> Path:
        assert not name.endswith(".safetensors") or name == self.near, f"{name} was fetched whole"
        return super().path(name)

    def part(self, name: str, start: int, count: int) -> bytes:
        return super().path(name).read_bytes()[start : start + count]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    for file, (name, value) in zip(files, ROWS.items(), strict=True):
        save_file({name: value}, tmp_path / file)
    weight_map = dict(zip(ROWS, files, strict=True))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def test_tensors_of_several_files_become_one_and_only_the_near_file_is_needed(folder: Path) -> None:
    converter = WeightConverter(["query", "key"], "fused", operations=[Concatenate(dim=0)])
    conversion = Conversion(converter, "new.fused", None, (("old.query", "query"), ("old.key", "key")))
    shapes = conversion.run([torch.empty(4, 8, device="meta") for _ in ROWS])
    assert {name: tuple(value.shape) for name, value in shapes.items()} == {"new.fused": (8, 8)}

    kept = Kept("new.fused", tuple(ROWS), (8, 8), conversion=conversion)
    made = as_tensor(kept.read(Checkpoint(NearAlone(folder)), NearAlone.near), "BF16")
    assert torch.equal(made, torch.cat([*ROWS.values()]))
    assert kept.plain is None


def test_one_tensor_becomes_several_each_written_by_itself(folder: Path) -> None:
    converter = WeightConverter("query", ["left", "right"], operations=[Chunk(dim=0)])
    conversion = Conversion(converter, "new.left", None, (("old.query", "query"),))
    halves = [Kept(name, ("old.query",), (2, 8), conversion=conversion) for name in ("new.left", "new.right")]
    made = [as_tensor(half.read(Checkpoint(FolderSource(folder))), "BF16") for half in halves]
    assert torch.equal(torch.cat(made), ROWS["old.query"])


def test_what_was_turned_is_written_as_it_lies_in_the_live_model(folder: Path) -> None:
    converter = WeightConverter("query", "turned", operations=[Transpose(0, 1)])
    kept = Kept(
        "new.turned",
        ("old.query",),
        (8, 4),
        conversion=Conversion(converter, "new.turned", None, (("old.query", "query"),)),
    )
    values = kept.read(Checkpoint(FolderSource(folder)))
    assert values.flags.c_contiguous
    assert torch.equal(as_tensor(values, "BF16"), ROWS["old.query"].T)


def test_a_slice_is_one_experts_part(folder: Path) -> None:
    part = Kept("new.bias", ("old.query",), (3,), part=(1, 2, 5))
    assert torch.equal(as_tensor(part.read(Checkpoint(FolderSource(folder))), "BF16"), ROWS["old.query"][1, 2:5])
