"""What goes into and comes out of a model's experts modules, and of linear layers beside them, while it runs."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from mopeq_hub.calibration import chosen_experts
from mopeq_hub.experts import Layout


@dataclass(frozen=True)
class Pass:
    """One layer's experts in one forward pass of t tokens.

    states [t, hidden]; chosen [t, k], the experts' numbers (`chosen_experts`); weights [t, k], what each chosen one's
    output is multiplied by; output [..., hidden], in the graph where gradients are wanted.
    """

    states: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor
    output: torch.Tensor

    def of(self, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the tokens that went to an expert: their places [m], states [m, hidden] and weights [m, 1]."""
        places, slots = (self.chosen == expert).nonzero(as_tuple=True)
        return places, self.states[places], self.weights[places, slots][:, None]


@dataclass(frozen=True)
class Flow:
    """One linear layer in one forward pass of t tokens: states [t, in] and output [..., out], as of a `Pass`."""

    states: torch.Tensor
    output: torch.Tensor


class Watch:
    """Keeps the last `Pass` of every experts module of a live model, by layer, and the last `Flow` of linear layers, by
    name."""

    def __init__(self, live: Any, layout: Layout, linears: Iterable[str] = (), gradients: bool = False) -> None:
        """linears: names of the linear layers. gradients: keep each output in the graph that gradients go through; the
        model's parameters need none then."""
        self.passes: dict[int, Pass] = {}
        self.flows: dict[str, Flow] = {}
        self._gradients = gradients
        for layer, name in layout.experts_modules.items():
            live.get_submodule(name).register_forward_hook(self._hook(layer), with_kwargs=True)
        for name in linears:
            live.get_submodule(name).register_forward_hook(self._linear_hook(name))

    def _hook(self, layer: int) -> Any:
        def look(_: Any, args: tuple[Any, ...], named: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
            chosen = chosen_experts(args, named)
            states, weights = _floats(args, named, chosen.shape)
            output = self._in_graph(output)
            states, chosen, weights = (value.detach().flatten(0, -2) for value in (states, chosen, weights))
            self.passes[layer] = Pass(states, chosen, weights, output)
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


def _floats(args: tuple[Any, ...], named: dict[str, Any], chosen: torch.Size) -> Iterator[torch.Tensor]:
    """The hidden states and the weights of the chosen experts, the one of the shape of their numbers."""
    values = [value for value in (*args, *named.values()) if torch.is_tensor(value) and value.is_floating_point()]
    yield values[0]
    yield next(value for value in values[1:] if value.shape == chosen)
