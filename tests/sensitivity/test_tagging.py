"""Tokens are followed to the experts that a model calls one by one, through whatever its code does to their order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from mopeq_hub.calibration import let_gradients_through
from mopeq_hub.sensitivity.tagging import Places

HIDDEN, COUNT, TOP = 6, 5, 2


class Block(nn.Module):
    """A layer's experts; `way` is how they are given their tokens."""

    def __init__(self, way: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.router = nn.Linear(HIDDEN, COUNT, bias=False)
        self.experts = nn.ModuleList([nn.Linear(HIDDEN, HIDDEN) for _ in range(COUNT)])
        self.way = way

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        states = hidden.view(-1, HIDDEN)
        weights, chosen = self.router(states).softmax(-1).topk(TOP, -1)
        return self.way(self.experts, states, weights, chosen).view_as(hidden) + hidden


@torch.no_grad()
def sorted_together(experts: Any, states: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """As DeepSeek's code infers."""
    order = chosen.view(-1).argsort()
    counts = [int((chosen == index).sum()) for index in range(COUNT)]
    parts = states[order // TOP].split(counts)
    together = torch.cat([expert(part) for expert, part in zip(experts, parts, strict=True) if len(part)])
    found = torch.empty_like(together)
    found[order] = together
    return (found.view(*chosen.shape, -1) * weights[..., None]).sum(1)


def one_after_another(experts: Any, states: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """As Mixtral's code did, with a place more in front of the tokens."""
    found = torch.zeros_like(states)
    mask = nn.functional.one_hot(chosen, COUNT).permute(2, 1, 0)
    for index, expert in enumerate(experts):
        slots, tokens = torch.where(mask[index])
        given = states[None, tokens].reshape(-1, HIDDEN)
        found.index_add_(0, tokens, expert(given) * weights[tokens, slots, None])
    return found


def repeated(experts: Any, states: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """As DeepSeek's code trains."""
    copies, flat = states.repeat_interleave(TOP, dim=0).to(torch.float64).float(), chosen.view(-1)
    found = torch.empty_like(copies)
    for index, expert in enumerate(experts):
        found[flat == index] = expert(copies[flat == index])
    return (found.view(*chosen.shape, -1) * weights[..., None]).sum(1)


def computed(experts: Any, states: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Experts are given something else than the layer's tokens."""
    return one_after_another(experts, states * 2, weights, chosen)


def watched(block: Block) -> tuple[Places, dict[Any, torch.Tensor]]:
    """What is seen of the places, and the states that each expert is called with."""
    seen: dict[Any, torch.Tensor] = {}
    places = Places(block, block.experts, lambda: True)
    for expert in block.experts:
        expert.register_forward_hook(lambda expert, args, output: seen.update({expert: args[0]}))
    return places, seen


@pytest.mark.parametrize("way", [sorted_together, one_after_another, repeated])
def test_numbers_lead_back_to_the_tokens(way: Callable[..., torch.Tensor]) -> None:
    block, hidden = Block(way), torch.randn(3, 7, HIDDEN)
    hidden[1, :3] = hidden[0, :3]  # Rows may begin alike.
    expected = block(hidden)
    places, seen = watched(block)
    found = block(hidden)
    assert type(found) is torch.Tensor
    assert torch.equal(found, expected)
    assert places.tokens == 21
    numbers = [places.of[expert] for expert in seen]
    assert all(each is not None for each in numbers)
    for each, states in zip(numbers, seen.values(), strict=True):
        assert type(states) is torch.Tensor
        assert torch.equal(hidden.view(-1, HIDDEN)[each], states)
    every = torch.cat([each for each in numbers if each is not None])
    assert torch.equal(every.bincount(minlength=21), torch.full((21,), TOP))


def test_what_was_computed_of_tokens_has_no_numbers() -> None:
    block = Block(computed)
    places, seen = watched(block)
    block(torch.randn(2, 4, HIDDEN))
    assert seen
    assert {places.of[expert] for expert in seen} == {None}


@pytest.mark.parametrize("wanted", [True, False])
def test_gradients_come_to_experts_that_are_called_without_where_somebody_wants_them(wanted: bool) -> None:
    block = nn.ModuleDict({"mlp": Block(sorted_together)})
    let_gradients_through(block, "mlp.experts")
    outputs: list[torch.Tensor] = []
    for expert in block["mlp"].experts:  # type: ignore[union-attr]
        expert.register_forward_hook(lambda _, args, output: outputs.append(output))
    with torch.set_grad_enabled(wanted):
        found = block["mlp"](torch.randn(1, 5, HIDDEN))
        assert torch.is_grad_enabled() is wanted
    assert outputs[0].requires_grad is wanted
    if wanted:
        gradients = torch.autograd.grad(found.sum(), outputs)
        assert all(gradient.abs().min() > 0 for gradient in gradients)
