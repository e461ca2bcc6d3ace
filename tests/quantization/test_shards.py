"""Output files are planned from shapes, filled in any order, and read by safetensors itself."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from mopeq_hub.quantization.shards import ShardPlan, ShardWriter, TensorPlan, fill_shards, named, write_index

PLANS = [
    TensorPlan("b.scales", "F16", (3, 5)),
    TensorPlan("a.qweight", "I32", (4, 4)),
    TensorPlan("odd", "U8", (7,)),
    TensorPlan("none", "F32", (0, 3)),
    TensorPlan("scalar", "F32", ()),
]
DTYPES = {"F16": np.float16, "I32": np.int32, "U8": np.uint8, "F32": np.float32}


def plan_shards(plans: list[TensorPlan], shard_size: int) -> list[ShardPlan]:
    return named([fill_shards(plans, shard_size)])[0]


def values(plan: TensorPlan) -> np.ndarray:
    count = plan.nbytes // np.dtype(DTYPES[plan.dtype]).itemsize
    return np.arange(count).astype(DTYPES[plan.dtype]).reshape(plan.shape)


@pytest.mark.parametrize("shard_size", [1, 64, 10_000])
@pytest.mark.parametrize("order", [1, -1])
def test_safetensors_reads_what_was_written(shard_size: int, order: int, tmp_path: Path) -> None:
    shards = plan_shards(PLANS, shard_size)
    with ShardWriter(tmp_path, shards) as writer:
        for plan in PLANS[::order]:
            writer.write(plan.name, values(plan))
    write_index(tmp_path, shards)
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    for plan in PLANS:
        with safe_open(tmp_path / weight_map[plan.name], "np") as file:
            assert file.metadata() == {"format": "pt"}
            assert np.array_equal(file.get_tensor(plan.name), values(plan))


def test_shards_are_begun_where_the_next_tensor_would_not_fit() -> None:
    plans = [TensorPlan(str(number), "U8", (40,)) for number in range(5)]
    assert [[tensor.name for tensor in shard.tensors] for shard in plan_shards(plans, 100)] == [
        ["0", "1"],
        ["2", "3"],
        ["4"],
    ]
    assert [shard.file for shard in plan_shards(plans, 100)] == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    ]


def test_every_tensor_is_aligned_to_its_items() -> None:
    (shard,) = plan_shards(PLANS, 10_000)
    _, offsets = shard.header()
    items = {plan.name: np.dtype(DTYPES[plan.dtype]).itemsize for plan in PLANS}
    assert all(offset % items[name] == 0 for name, offset in offsets.items())


def test_a_forgotten_tensor_and_a_wrong_size_are_faults(tmp_path: Path) -> None:
    shards = plan_shards(PLANS, 10_000)
    with pytest.raises(ValueError, match="not written"), ShardWriter(tmp_path, shards) as writer:
        writer.write("odd", values(PLANS[2]))
    with pytest.raises(ValueError, match="planned"), ShardWriter(tmp_path, shards) as writer:
        writer.write("odd", np.zeros(8, dtype=np.uint8))
