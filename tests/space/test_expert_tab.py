"""What is told of an expert is what its packed weights say, wherever they lie; the picture finds the expert clicked."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants

from mopeq_hub.manifest import read_manifest
from mopeq_hub.packing import Packed, dequantize, pack
from mopeq_hub.recipe import Recipe
from mopeq_hub.report import counts
from tests.hub import HubServer
from tests.report.documents import manifest
from tests.space.conftest import Load


def experts_of(load: Load, folder: Path, place: Any) -> Any:
    return load("expert_numbers").Experts(read_manifest(folder), load("tensors").Tensors(place))


def test_the_numbers_of_an_expert_are_those_of_its_dequantized_weights(load: Load, published: Path) -> None:
    from safetensors import safe_open

    manifest = read_manifest(published)
    experts = experts_of(load, published, load("publication").Place(str(published), None))
    tensors: dict[str, np.ndarray] = {}
    for path in published.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys() if ".experts." in name}  # noqa: SIM118
    seen = set()
    for layer, expert in ((0, 0), (1, 4), (2, 12), (3, 23)):
        entry = manifest["experts"][layer]
        bits = entry["bits"][expert]
        seen.add(bits)
        numbers = experts.numbers(layer, expert)
        assert [each.name for each in numbers] == ["gate_proj", "up_proj", "down_proj"]
        for each in numbers:
            packed = Packed.of(f"{entry['module']}.{expert}.{each.name}", tensors.__getitem__)
            weight = dequantize(packed, bits, symmetric=True)
            assert (each.rows, each.columns) == weight.shape
            assert each.rms == pytest.approx(float(np.sqrt((weight.astype(np.float64) ** 2).mean())), rel=1e-6)
            assert each.largest == pytest.approx(float(np.abs(weight).max()))
            assert each.usage.size == 1 << bits
            assert each.usage.sum() == pytest.approx(1)
            sizes = np.abs(packed.scales.astype(np.float32))
            assert each.scales == pytest.approx((sizes.min(), np.median(sizes), sizes.max()))
    assert len(seen) > 1


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_every_width_is_read_in_both_layouts(load: Load, bits: int, symmetric: bool) -> None:
    chance = np.random.default_rng(bits)
    codes = chance.integers(0, 1 << bits, (96, 128), dtype=np.uint8)
    zeros = chance.integers(0, 1 << bits, (96, 2), dtype=np.uint8)
    packed = pack(codes, chance.normal(0, 0.01, (96, 2)).astype(np.float16), zeros, bits)

    class Tensors:
        def under(self, prefix: str) -> dict[str, np.ndarray]:
            assert prefix == "layers.0.experts.0."
            return {f"down_proj.{part}": array for part, array in packed.tensors().items()}

    layer = {"layer": 0, "module": "layers.0.experts", "bits": [bits], "sensitivity": [1.0]}
    recipe = {"group_size": 64, "symmetric": symmetric}
    made = {"experts": [layer], "recipe": recipe, "rest": {"bits": 4, "quantized": 0, "unquantized": []}}
    experts = load("expert_numbers").Experts(made, Tensors())
    [numbers] = experts.numbers(0, 0)
    weight = dequantize(packed, bits, symmetric).astype(np.float64)
    assert numbers.rms == pytest.approx(float(np.sqrt((weight**2).mean())), rel=1e-5)
    assert numbers.largest == pytest.approx(float(np.abs(weight).max()), rel=1e-5)
    assert numbers.usage == pytest.approx(np.bincount(codes.reshape(-1), minlength=1 << bits) / codes.size)
    told = experts.described(0, 0)
    assert ("Code levels that are used, of 256" in told) == (bits == 8)


def test_an_expert_on_the_hub_is_read_by_ranges_and_only_its_own_bytes(
    load: Load, published: Path, hub: HubServer
) -> None:
    files = {path.name: path.read_bytes() for path in published.iterdir() if path.is_file()}
    hub.add_repo("alice/shapes-MoPEQ", files)
    place = load("publication").Place
    here = experts_of(load, published, place(str(published), None)).described(2, 12)
    there = experts_of(load, published, place("alice/shapes-MoPEQ", "main"))
    assert there.described(2, 12) == here
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.safetensors"))


def test_tensors_that_cannot_be_read_are_reported_in_words(load: Load, published: Path, tmp_path: Path) -> None:
    tensors = load("tensors")
    empty = tensors.Tensors(load("publication").Place(str(tmp_path), None))
    with pytest.raises(tensors.TensorsError, match=r"model\.safetensors\.index\.json cannot be read now"):
        empty.under("model.layers.0.")
    whole = tensors.Tensors(load("publication").Place(str(published), None))
    with pytest.raises(tensors.TensorsError, match="has no tensors of nothing"):
        whole.under("nothing.")


def test_an_expert_whose_tensors_cannot_be_read_still_has_its_bits_and_sensitivity(
    load: Load, published: Path, tmp_path: Path
) -> None:
    entry = read_manifest(published)["experts"][2]
    told = experts_of(load, published, load("publication").Place(str(tmp_path), None)).described(2, 12)
    assert f"<b>{entry['bits'][12]} bits</b>" in told
    assert f"<b>{entry['sensitivity'][12]:.6g}</b>" in told
    assert "Its packed weights cannot be read now: model.safetensors.index.json cannot be read now." in told


@pytest.mark.parametrize("experts", [24, 128, 512])
def test_every_expert_of_a_large_model_can_be_found_in_the_picture(load: Load, experts: int) -> None:
    heatmap = load("heatmap")
    rows = {layer: [2 + (layer + expert) % 3 for expert in range(experts)] for layer in range(3, 97)}
    drawn = heatmap.Heatmap(rows, heatmap.by_width)
    picture = drawn.draw(50, experts - 1)
    assert picture.width <= 2100
    middle = drawn.cell // 2
    for layer, expert in ((3, 0), (50, experts - 1), (96, experts // 2)):
        x, y = expert * drawn.cell + middle, (layer - 3) * drawn.cell + middle
        assert drawn.at(x, y) == (layer, expert)
        red, green, blue, _ = picture.getpixel((x, y))
        assert f"#{red:02x}{green:02x}{blue:02x}" == heatmap.COLOURS[rows[layer][expert]]
    assert drawn.at(picture.width + 5, 0) is None


def test_the_most_sensitive_expert_is_the_darkest(load: Load) -> None:
    heatmap = load("heatmap")
    colours = heatmap.by_amount(1.0, 3.0)([0.5, 1.0, 2.0, 3.0, 9.0]).astype(int).sum((1, 2))
    assert list(colours) == sorted(colours, reverse=True)
    assert colours[0] == colours[1] > colours[2] > colours[3] == colours[4]
    assert heatmap.by_amount(1.0, 1.0)([1.0]).shape == (1, 1, 3)


def test_projections_that_differ_are_stripes_of_their_experts_cell(load: Load) -> None:
    heatmap = load("heatmap")
    rows = {0: [2, {"gate": 2, "up": 3, "down": 4}], 1: [4, 8]}
    drawn = heatmap.Heatmap(rows, heatmap.by_width)
    picture = drawn.draw(1, 0)
    colours = []
    for share in (1, 3, 5):
        red, green, blue, _ = picture.getpixel((drawn.cell + drawn.cell // 2, drawn.cell * share // 6))
        colours.append(f"#{red:02x}{green:02x}{blue:02x}")
    assert colours == [heatmap.COLOURS[width] for width in (2, 3, 4)]


def test_widths_by_projection_and_of_the_rest_are_counted_and_told(load: Load) -> None:
    recipe = Recipe(allocator="knapsack", budget="0.25x", granularity="projection", rest_bits="auto")
    made = manifest(recipe=recipe)
    widths = made["experts"][0]["bits"]
    expert = next(index for index, each in enumerate(widths) if not isinstance(each, int))

    class Tensors:
        def under(self, prefix: str) -> dict[str, np.ndarray]:
            chance = np.random.default_rng(0)
            tensors: dict[str, np.ndarray] = {}
            for name, bits in widths[expert].items():
                codes = chance.integers(0, 1 << bits, (32, 64), dtype=np.uint8)
                packed = pack(codes, np.ones((32, 1), np.float16), np.zeros((32, 1), np.uint8), bits)
                tensors |= {f"{name}_proj.{part}": array for part, array in packed.tensors().items()}
            return tensors

    experts = load("expert_numbers").Experts(made, Tensors())
    _, legend = load("expert_tab").bit_map(experts)
    for width, count in counts(made).items():
        assert f"{width} bits: {count} projections" in legend
    assert "gate, up and down projection, from top to bottom" in legend
    assert "Linear layers outside the experts: 4 layers at 3 bits, 4 layers at 4 bits" in legend
    told = experts.described(0, expert)
    for name, bits in widths[expert].items():
        assert f"{name} <b>{bits} bits</b>" in told
    assert f"<th scope=row>{(1 << max(widths[expert].values())) - 1}</th>" in told
