"""gpt-oss as it is published: experts in MXFP4, which give what their numbers in 16 bits give."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from mopeq_hub import Recipe, quantize
from mopeq_hub.errors import MopeqError
from mopeq_hub.model import open_model
from mopeq_hub.mxfp4 import unpacked
from tests.conftest import edit_json
from tests.families.test_every_family import save


def some(*shape: int, exponents: tuple[int, int] = (120, 130)) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks [..., in / 32, 16] and scales of numbers [..., in], anything that a file may hold."""
    generator = torch.Generator().manual_seed(0)
    groups = (*shape[:-1], shape[-1] // 32)
    blocks = torch.randint(0, 256, (*groups, 16), dtype=torch.uint8, generator=generator)
    return blocks, torch.randint(*exponents, groups, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("exponents", [(120, 130), (3, 251)], ids=["of trained weights", "of any size"])
def test_the_numbers_are_those_that_transformers_makes(exponents: tuple[int, int]) -> None:
    blocks, scales = some(2, 64, 96, exponents=exponents)
    expected = convert_moe_packed_tensors(blocks, scales).transpose(1, 2)
    for index in range(2):
        ours = unpacked(blocks[index].numpy(), scales[index].numpy())
        assert torch.equal(torch.from_numpy(ours).view(torch.bfloat16), expected[index])


def test_exponents_that_bfloat16_has_no_room_for_are_rounded() -> None:
    blocks, scales = some(64, 96, exponents=(0, 3))
    ours = torch.from_numpy(unpacked(blocks.numpy(), scales.numpy())).view(torch.bfloat16)
    low, high = blocks & 15, blocks >> 4
    codes = torch.stack([low, high], -1).flatten(-2).flatten(-2).long()
    sizes = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)[codes & 7] * torch.where(
        codes & 8 > 0, -1, 1
    )
    exact = torch.ldexp(sizes, scales.repeat_interleave(32, -1).double() - 127)
    assert torch.equal(ours, exact.float().bfloat16())


def in_mxfp4(source: Path, folder: Path) -> None:
    """Store the experts of the gpt-oss in `source` as MXFP4 in `folder`, and in `source` as the same numbers."""
    tensors = load_file(source / "model.safetensors")
    packed = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(("gate_up_proj", "down_proj")):
            experts, columns, rows = tensor.shape
            packed[f"{name}_blocks"], packed[f"{name}_scales"] = some(experts, rows, columns)
            tensors[name] = convert_moe_packed_tensors(packed[f"{name}_blocks"], packed[f"{name}_scales"]).contiguous()
            del packed[name]
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    save_file(packed, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", lambda config: config.update(quantization_config={"quant_method": "mxfp4"}))


def test_a_model_stored_as_mxfp4_gives_the_same_publication_as_its_numbers(tmp_path: Path) -> None:
    numbers, packed = save("gpt_oss", tmp_path / "numbers"), tmp_path / "packed"
    in_mxfp4(numbers, packed)
    repos = [quantize(str(each), tmp_path / f"{each.name}-out", Recipe(group_size=32)) for each in (numbers, packed)]
    one, other = (load_file(repo.folder / "model-00001-of-00001.safetensors") for repo in repos)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    sizes = [repo.manifest["sizes"]["source_bytes"] for repo in repos]
    assert sizes[1] < 0.6 * sizes[0]


def test_blocks_without_a_scale_each_are_refused(tmp_path: Path) -> None:
    numbers, packed = save("gpt_oss", tmp_path / "numbers"), tmp_path / "packed"
    in_mxfp4(numbers, packed)
    tensors = load_file(packed / "model.safetensors")
    name = next(name for name in tensors if name.endswith("_scales"))
    tensors[name] = tensors[name][:, :-1].contiguous()
    save_file(tensors, packed / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MopeqError, match="has no scale for each block"):
        open_model(str(packed))


def test_a_stack_is_unpacked_one_matrix_at_a_time(tmp_path: Path) -> None:
    numbers, packed = save("gpt_oss", tmp_path / "numbers"), tmp_path / "packed"
    in_mxfp4(numbers, packed)
    models = [open_model(str(each)) for each in (numbers, packed)]
    for one, other in zip(*(model.layout.routed[:9] for model in models), strict=True):
        assert one.name == other.name
        weights = [matrix.read(model.checkpoint) for matrix, model in zip((one, other), models, strict=True)]
        assert np.array_equal(weights[0].float32(), weights[1].float32())
