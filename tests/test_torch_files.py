"""Weights in torch's zip files are read as those in safetensors are, without running anything that is in them."""

import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mopeq_hub import MopeqError, Recipe, pipeline, publish
from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.source import FolderSource, open_source
from tests.conftest import many_shards
from tests.hub import HubServer, client_pointed_at

INDEX, TORCH_INDEX = "model.safetensors.index.json", "pytorch_model.bin.index.json"
RECIPE = Recipe(bits=(2, 4))


def as_torch_files(folder: Path) -> Path:
    """The folder's weights in torch's files, tensor for tensor and file for file."""
    index = json.loads((folder / INDEX).read_text())
    for shard in sorted(set(index["weight_map"].values())):
        with safe_open(folder / shard, "pt") as file:
            tensors = OrderedDict((name, file.get_tensor(name)) for name in file.offset_keys())
        torch.save(tensors, folder / torch_name(shard))
        (folder / shard).unlink()
    named = {tensor: torch_name(shard) for tensor, shard in index["weight_map"].items()}
    (folder / TORCH_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))
    (folder / INDEX).unlink()
    return folder


def torch_name(shard: str) -> str:
    return shard.replace("model-", "pytorch_model-").replace(".safetensors", ".bin")


def opened(folder: Path) -> Checkpoint:
    return Checkpoint(FolderSource(folder))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """One model in four safetensors files and in four of torch's."""
    return many_shards(tmp_path / "safe" / "shapes", 4), as_torch_files(many_shards(tmp_path / "torch" / "shapes", 4))


def weights(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.safetensors*"))}


def test_the_publication_is_the_same(pair: tuple[Path, Path], tmp_path: Path) -> None:
    made = [tmp_path / "from-safe", tmp_path / "from-torch"]
    for source, target in zip(pair, made, strict=True):
        pipeline.quantize(str(source), target, RECIPE)
    assert weights(made[0]) == weights(made[1])
    maps = [json.loads((folder / "mopeq.json").read_text()) for folder in made]
    assert maps[0]["experts"] == maps[1]["experts"]
    assert not list(made[1].glob("*.bin*"))


def test_every_tensor_is_read_as_it_lies_in_the_file(pair: tuple[Path, Path]) -> None:
    safe, zipped = (opened(folder) for folder in pair)
    assert set(safe.tensors) == set(zipped.tensors)
    assert safe.nbytes == zipped.nbytes
    for name, info in safe.tensors.items():
        other = zipped.tensors[name]
        assert (info.dtype, info.shape, info.nbytes) == (other.dtype, other.shape, other.nbytes)
        assert np.array_equal(safe.array(name), zipped.array(name))
        assert not zipped.array(name).flags.writeable
        zipped.let_go(name)
        assert np.array_equal(safe.array(name), zipped.array(name))
    alike = [[info.name for info in each.in_file_order] for each in (safe, zipped)]
    assert alike[0] == alike[1]


def test_from_the_hub_a_plan_takes_the_lists_and_no_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with HubServer(tmp_path / "server") as server, client_pointed_at(server, tmp_path / "home"):
        server.add_repo("alice/shapes", pair[1])
        remote, local = Checkpoint(open_source("alice/shapes")), opened(pair[1])
        assert remote.tensors == local.tensors
        name = "language_model.model.layers.0.mlp.gate.weight"
        assert np.array_equal(remote.apart(name), local.array(name))
        assert not list((tmp_path / "home").rglob("*.bin"))


def test_shards_from_the_hub_pass_through(
    pair: tuple[Path, Path], some_questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOPEQ_HOME", str(tmp_path / "mopeq-home"))
    pipeline.quantize(str(pair[0]), tmp_path / "whole", RECIPE)
    with HubServer(tmp_path / "server") as server, client_pointed_at(server, tmp_path / "home"):
        server.add_repo("alice/shapes", pair[1])
        monkeypatch.setenv("HF_TOKEN", server.token("alice"))
        publish("alice/shapes", "alice/streamed", RECIPE, questions=some_questions, stream=True)
        streamed = {name: data for name, data in server.files("alice/streamed").items() if ".safetensors" in name}
    assert streamed == weights(tmp_path / "whole")
    assert not list((tmp_path / "mopeq-home").rglob("*.bin"))


def test_safetensors_are_preferred_and_the_rest_changes_nothing(pair: tuple[Path, Path]) -> None:
    before = FolderSource(pair[0]).commit
    (pair[0] / "pytorch_model.bin").write_bytes(b"anything")
    assert opened(pair[0]).shards[0].endswith(".safetensors")
    assert FolderSource(pair[0]).commit == before
    changed = FolderSource(pair[1]).commit
    (pair[1] / "pytorch_model-00001-of-00004.bin").write_bytes(b"anything")
    assert FolderSource(pair[1]).commit != changed


class Harm:
    """Runs on being unpickled."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._target,))


def single(folder: Path, state: Any, **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state, folder / "pytorch_model.bin", **options)
    return folder


def refusal(folder: Path) -> str:
    """The one line about a folder whose weights cannot be used."""
    with pytest.raises(MopeqError) as refused:
        opened(folder)
    line = str(refused.value)
    assert "pytorch_model.bin" in line
    assert "\n" not in line
    return line


def test_code_in_a_pickle_is_refused_and_never_runs(tmp_path: Path) -> None:
    target = tmp_path / "harmed"
    folder = single(tmp_path / "model", {"weight": torch.zeros(2), "harm": Harm(target)})
    assert "something other than tensors" in refusal(folder)
    assert not target.exists()


@pytest.mark.parametrize(
    ("state", "word"),
    [
        ({"weight": torch.zeros(2), "epoch": 3}, "'epoch' is of type int"),
        ({"state_dict": {"weight": torch.zeros(2)}}, "'state_dict' is of type dict"),
        ([torch.zeros(2)], "no tensors by name but of type list"),
        ({"weight": torch.zeros(4, 4).to_sparse()}, "other than tensors|not supported"),
        ({"weight": torch.zeros(4, 6).T}, "do not follow one another"),
        ({"weight": torch.zeros(2, dtype=torch.complex64)}, "complex64"),
    ],
    ids=["a number", "nested", "a list", "sparse", "transposed", "complex"],
)
def test_what_is_not_plain_tensors_by_name_is_refused(tmp_path: Path, state: Any, word: str) -> None:
    line = refusal(single(tmp_path / "model", state))
    assert any(each in line for each in word.split("|")), line


def test_the_old_format_is_refused(tmp_path: Path) -> None:
    state = {"weight": torch.zeros(2)}
    assert "zip format" in refusal(single(tmp_path / "old", state, _use_new_zipfile_serialization=False))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    assert "zip format" in refusal(tmp_path / "plain")


def test_tensors_that_share_memory_and_parameters_are_read(tmp_path: Path) -> None:
    whole = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)
    state = {
        "whole": whole,
        "end": whole[1:],
        "parameter": torch.nn.Parameter(torch.ones(5)),
        "none": torch.zeros(0, 3),
    }
    checkpoint = opened(single(tmp_path / "model", state))
    assert checkpoint.array("end").view(np.uint16).tolist() == whole[1:].view(torch.uint16).tolist()
    assert checkpoint.array("parameter").tolist() == [1.0] * 5
    assert checkpoint.array("none").shape == (0, 3)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A folder with one good file, which a test rewrites or damages."""
    return single(tmp_path / "model", {"weight": torch.arange(64.0)})


def rewritten(folder: Path, **options: Any) -> None:
    path = folder / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


def test_records_that_begin_anywhere_are_read(archive: Path) -> None:
    rewritten(archive)
    assert opened(archive).array("weight").tolist() == list(range(64))


def test_compressed_records_are_refused(archive: Path) -> None:
    rewritten(archive, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(archive)


def test_a_file_that_was_cut_off_is_refused(archive: Path) -> None:
    path = archive / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-40])
    assert "damaged" in refusal(archive)


def test_a_list_that_claims_more_than_there_is_is_refused(archive: Path) -> None:
    path = archive / "pytorch_model.bin"
    with zipfile.ZipFile(path) as source:
        records = {info.filename: source.read(info) for info in source.infolist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in records.items():
            target.writestr(name, data[:-4] if name.endswith("data/0") else data)
    assert "needs 256 bytes of a record of 252" in refusal(archive)


def test_a_record_that_does_not_begin_where_the_directory_says_is_refused(archive: Path) -> None:
    path = archive / "pytorch_model.bin"
    with zipfile.ZipFile(path) as source:
        begins = next(info.header_offset for info in source.infolist() if info.filename.endswith("data/0"))
    data = bytearray(path.read_bytes())
    data[begins : begins + 4] = struct.pack("<I", 0)
    path.write_bytes(data)
    with pytest.raises(MopeqError, match="does not begin where its directory says"):
        opened(archive).array("weight")
