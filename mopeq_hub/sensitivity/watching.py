"""What goes into and comes out of a model's experts modules, and of linear layers beside them, while it runs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from mopeq_hub.calibration import NO_EXPERT, Chosen, called, let_gradients_through
from mopeq_hub.experts import Layout
from mopeq_hub.families.base import ExpertsModule


@dataclass(frozen=True)
class Pass:
    """One call of a layer's experts in one forward pass, with t tokens: of `held`, all of them or, where the model
    calls each by itself, one.

    states [t, hidden]; chosen [t, k], the experts' numbers (`chosen_experts`), none where it would weigh nothing;
    weights [t, k], what each chosen one's output is multiplied by, 1 where that comes after the call; output
    [..., hidden], in the graph where gradients are wanted. Where each expert is given all tokens, t is `copies` times
    as many.
    """

    held: ExpertsModule
    states: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor
    output: torch.Tensor
    copies: int

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the tokens that went to an expert: their places [m], states [m, hidden] and weights [m, 1]."""
        places, slots = (self.chosen == expert).nonzero(as_tuple=True)
        return places, self.states[places], self.weights[places, slots][:, None]

    def rows_of(self, places: torch.Tensor, rows: int) -> torch.Tensor:
        """In which of so many rows of equal length these places are; one where each expert is called by itself."""
        tokens = len(self.states) // self.copies
        return places % tokens // (tokens // rows)


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
        self._gradients = gradients
        for held in layout.modules:
            if gradients:
                let_gradients_through(live, held.name)
            experts = live.get_submodule(held.name)
            for module, choose in called(experts, held.count):
                module.register_forward_hook(self._hook(held, choose, module is not experts), with_kwargs=True)
        for name in linears:
            live.get_submodule(name).register_forward_hook(self._linear_hook(name))

    def begin(self) -> None:
        """Forget what was seen: not every input comes to every module."""
        self.passes.clear()
        self.flows.clear()

    def _hook(self, held: ExpertsModule, choose: Chosen, apart: bool) -> Any:
        def look(_: Any, args: tuple[Any, ...], named: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
            chosen = choose(args, named)
            states, weights = _floats(args, named, chosen)
            output = self._in_graph(output)
            states, chosen, weights = (value.detach().flatten(0, -2) for value in (states, chosen, weights))
            chosen = torch.where((chosen == NO_EXPERT) | (weights == 0), NO_EXPERT, chosen + held.first)
            copies = held.count if len(args) + len(named) == 1 and not apart else 1
            self.passes.append(Pass(held, states, chosen, weights, output, copies))
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
