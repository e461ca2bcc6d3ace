"""Experts that are modules of a list are found by what they do, whatever their linear layers are called."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mopeq_hub.families.gating import gate_of
from mopeq_hub.families.listed import listed_forms
from mopeq_hub.model import open_model
from tests.families.test_every_family import save

HIDDEN, WIDTH, COUNT = 8, 6, 4


class Expert(nn.Module):
    """gate, up and down by these names, in this order in the module; `step` is what is done between them."""

    def __init__(self, names: dict[str, str], step: Callable[..., Any], width: int = WIDTH, bias: bool = False) -> None:
        super().__init__()
        self.names, self.step = names, step
        for projection, name in names.items():
            sizes = (width, HIDDEN) if projection == "down" else (HIDDEN, width)
            self.add_module(name, nn.Linear(*sizes, bias=bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def layer(projection: str) -> Callable[[torch.Tensor], torch.Tensor]:
            return getattr(self, self.names[projection])  # type: ignore[no-any-return]

        return self.step(x, layer)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, experts: list[nn.Module], router: nn.Module | None) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.router = router


def model(make: Callable[[], nn.Module], router: bool = True) -> nn.Module:
    with torch.device("meta"):
        linear = nn.Linear(HIDDEN, COUNT, bias=False) if router else None
        return nn.Sequential(Block([make() for _ in range(COUNT)], linear))


def gated(x: Any, layer: Any) -> Any:
    return layer("down")(nn.functional.silu(layer("gate")(x)) * layer("up")(x))


def up_first(x: Any, layer: Any) -> Any:
    up = layer("up")(x)
    return layer("down")(up * nn.functional.relu(layer("gate")(x)))


def limited(x: Any, layer: Any) -> Any:
    gate, up = layer("gate")(x).clamp(max=0.4), layer("up")(x)
    return layer("down")(gate * torch.sigmoid(gate) * up)


def plain(x: Any, layer: Any) -> Any:
    return layer("down")(nn.functional.gelu(layer("up")(x)))


USUAL = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
MIXTRAL = {"gate": "w1", "down": "w2", "up": "w3"}
MISLEADING = {"down": "a", "up": "gate_proj", "gate": "up_proj"}


@pytest.mark.parametrize(
    ("names", "step", "width"),
    [
        (USUAL, gated, WIDTH),
        (MIXTRAL, gated, WIDTH),
        (MIXTRAL, gated, HIDDEN),
        (MISLEADING, up_first, WIDTH),
        (USUAL, limited, WIDTH),
        ({"up": "fc1", "down": "fc2"}, plain, WIDTH),
        ({"down": "fc1", "up": "fc2"}, plain, HIDDEN),
    ],
)
def test_gate_up_and_down_are_known_by_how_they_are_used(names: dict[str, str], step: Any, width: int) -> None:
    whole = model(lambda: Expert(names, step, width))
    ((place, form),) = listed_forms(whole).items()
    assert place == "0.experts"
    assert {projection: module.removeprefix("{}.") for projection, module in form.modules} == names
    assert list(form.projections) == [name for name in ("gate", "up", "down") if name in names]
    # What is computed without weights is what an expert with weights computes.
    real = Expert(names, step, width)
    states = torch.randn(5, HIDDEN)
    first = [getattr(real, names[name])(states) for name in ("gate", "up") if name in names]
    between = gate_of(whole.get_submodule(place), form)(torch.cat(first, -1))
    assert torch.allclose(getattr(real, names["down"])(between), real(states), atol=1e-6)


def test_biases_are_noticed() -> None:
    (form,) = listed_forms(model(lambda: Expert(USUAL, gated, bias=True))).values()
    assert form.biased


def residual(x: Any, layer: Any) -> Any:
    return x + gated(x, layer)


def normed(x: Any, layer: Any) -> Any:
    return gated(nn.functional.layer_norm(x, (HIDDEN,)), layer)


def twice(x: Any, layer: Any) -> Any:
    return gated(gated(x, layer), layer)


def broken(x: Any, layer: Any) -> Any:
    raise OSError("whatever a stranger's code may raise")


@pytest.mark.parametrize("step", [residual, normed, twice, broken])
def test_what_does_anything_else_is_no_expert(step: Any) -> None:
    assert listed_forms(model(lambda: Expert(USUAL, step))) == {}


def test_a_list_without_a_router_or_of_modules_that_differ_is_none_of_experts() -> None:
    assert listed_forms(model(lambda: Expert(USUAL, gated), router=False)) == {}
    widths = iter(range(4, 4 + COUNT))
    assert listed_forms(model(lambda: Expert(USUAL, gated, next(widths)))) == {}

    class WithNorm(Expert):
        def __init__(self) -> None:
            super().__init__(USUAL, gated)
            self.norm = nn.LayerNorm(HIDDEN)

    assert listed_forms(model(WithNorm)) == {}


@pytest.mark.parametrize("name", ["afmoe", "hunyuan_v1_moe"])
def test_routers_that_are_linear_layers_are_never_quantized(name: str, tmp_path: Path) -> None:
    layout = open_model(str(save(name, tmp_path / "model"))).layout
    routers = {router.removesuffix(".weight") for router in layout.routing.routers.values()}
    assert routers
    assert routers.isdisjoint(matrix.name for matrix in layout.rest)
    assert routers <= set(layout.never_quantized)
