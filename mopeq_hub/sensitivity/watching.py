"""What goes into and comes out of a model's experts modules, and of linear layers beside them, while it runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from mopeq_hub.calibration import NO_EXPERT, Chosen, called, let_gradients_through
from mopeq_hub.experts import Layout
from mopeq_hub.families.base import ExpertsModule
from mopeq_hub.sensitivity.tagging import Places


@dataclass(frozen=True)
class Pass:
    """One call of a layer's experts in one forward pass, with t tokens: of `held`, all of them or, where the model
    calls each by itself, one.

    states [t, hidden]; chosen [t, k], the experts' numbers (`chosen_experts`), none where it would weigh nothing;
    weights [t, k], what each chosen one's output is multiplied by, 1 where that comes after the call; output
    [..., hidden], in the graph where gradients are wanted. tokens: how many the layer was given; t is a multiple of
    that where each expert is given all. numbers [t]: which of them each of the t is; None where that is not known.
    """

    held: ExpertsModule
    states: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor
    output: torch.Tensor
    tokens: int
    numbers: torch.Tensor | None

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the tokens that went to an expert: their places [m], states [m, hidden] and weights [m, 1]."""
        places, slots = (self.chosen == expert).nonzero(as_tuple=True)
        return places, self.states[places], self.weights[places, slots][:, None]

    def rows_of(self, places: torch.Tensor, rows: int) -> torch.Tensor:
        """In which of so many rows of equal length these places are; of several, the numbers have to be known."""
        if self.numbers is None:
            return torch.zeros_like(places)
        return self.numbers[places] // (self.tokens // rows)


@dataclass(frozen=True)
class Flow:
    """One linear layer in one forward pass of t tokens: states [t, in] and output [..., out], as of a `Pass`."""

    states: torch.Tensor
    output: torch.Tensor


class Watch:
    """Keeps every `Pass` of the experts modules of a live model, and the last `Flow` of linear layers, by name, since
    it began to look."""

    def __init__(self, live: Any, layout: Layout, linears: Iterable[str] = (), gradients: bool = False) -> None:
        """linears: names of the linear layers. gradients: keep each output in the graph that gradients go through; the
        model's parameters need none then."""
        self.passes: list[Pass] = []
        self.flows: dict[str, Flow] = {}
        self._gradients, self._begun = gradients, False
        for held in layout.modules:
            experts, places = live.get_submodule(held.name), None
            apart = isinstance(experts, torch.nn.ModuleList)
            if gradients and apart:
                let_gradients_through(live, held.name)
                block = live.get_submodule(held.name.rpartition(".")[0])
                places = Places(block, experts, lambda: self._begun)
            for module, choose in called(experts, held.count):
                module.register_forward_hook(self._hook(held, choose, apart, places), with_kwargs=True)
        for name in linears:
            live.get_submodule(name).register_forward_hook(self._linear_hook(name))

    def begin(self) -> None:
        """Forget what was seen: not every input comes to every module. What runs before the first time is not kept."""
        self._begun = True
        self.passes.clear()
        self.flows.clear()

    def _hook(self, held: ExpertsModule, choose: Chosen, apart: bool, places: Places | None) -> Any:
        def look(module: Any, args: tuple[Any, ...], named: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
            if not self._begun:
                return output
            chosen = choose(args, named)
            states, weights = _floats(args, named, chosen)
            output = self._in_graph(output)
            states, chosen, weights = (value.detach().flatten(0, -2) for value in (states, chosen, weights))
            chosen = torch.where((chosen == NO_EXPERT) | (weights == 0), NO_EXPERT, chosen + held.first)
            tokens, numbers = len(states), None
            if places:
                tokens, numbers = places.tokens, places.of[module]
            elif not apart:
                tokens = len(states) // (held.count if len(args) + len(named) == 1 else 1)
                numbers = torch.arange(len(states), device=states.device) % tokens
            self.passes.append(Pass(held, states, chosen, weights, output, tokens, numbers))
            return output

        return look

    def _linear_hook(self, name: str) -> Any:
        def look(_: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            output = self._in_graph(output)
            self.flows[name] = Flow(args[0].detach().flatten(0, -2), output)
            return output

        return look

    def _in_graph(self, output: torch.Tensor) -> torch.Tensor:
        return output.detach().requires_grad_() if self._gradients and not output.requires_grad else output


def _floats(args: tuple[Any, ...], named: dict[str, Any], chosen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states and the weights of the chosen experts, the one of the shape of their numbers; 1 where hidden
    states come weighed."""
    floats = [value for value in (*args, *named.values()) if torch.is_tensor(value) and value.is_floating_point()]
    states, *others = floats
    weights = next((value for value in others if value.shape == chosen.shape), None)
    return states, torch.ones_like(chosen, dtype=states.dtype) if weights is None else weights
