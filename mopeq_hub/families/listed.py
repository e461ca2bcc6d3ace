"""Experts that are modules of a list, which the model calls one by one: found, and understood by running one of them.

So do models whose code is in their repo alone hold their experts. What an expert's linear layers are named says nothing
for certain; when they are called, and what becomes of what they give, does. No weight is looked at: instead of
computing, a layer hands on what it is to give.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from mopeq_hub.families.base import PROJECTIONS, Form
from mopeq_hub.families.routing import router_in
from mopeq_hub.families.standing_in import between, with_layers

if TYPE_CHECKING:
    import torch
    from torch import nn

_ROWS = 3
"""Of what an expert is tried on."""


def listed_forms(model: "nn.Module") -> dict[str, Form]:
    """How each list of experts in a model holds them, by its name: alike modules of two or three linear layers, up and
    down or gate, up and down, whatever these are called, beside a router that has a vector for each."""
    from torch import nn

    found: dict[str, Form] = {}
    known: dict[type, dict[tuple[Any, ...], Form | None]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or len(module) < 2 or len({type(each) for each in module}) > 1:
            continue
        shapes = _linears(module[0])
        if any(_linears(each) != shapes for each in module):
            continue
        # All layers have the same kind, and trying one takes a moment.
        forms = known.setdefault(type(module[0]), {})
        if (key := tuple(shapes.items())) not in forms:
            forms[key] = _form(module[0], shapes)
        form = forms[key]
        block, _, own = name.rpartition(".")
        if form and router_in(model.get_submodule(block), own, (len(module), shapes[_first(form)][1])):
            found[name] = form
    return found


def _linears(expert: Any) -> dict[str, tuple[int, int]]:
    """[out, in] of an expert's linear layers by name, in order; nothing where it has other parameters beside them."""
    from torch import nn

    linears = {name: child for name, child in expert.named_children() if type(child) is nn.Linear}
    own = {id(parameter) for child in linears.values() for parameter in child.parameters()}
    if any(id(parameter) not in own for parameter in expert.parameters()):
        return {}
    return {name: (child.out_features, child.in_features) for name, child in linears.items()}


def _first(form: Form) -> str:
    """The name in an expert of its first projection."""
    return form.modules[0][1].partition(".")[2]


def _form(expert: Any, shapes: dict[str, tuple[int, int]]) -> Form | None:
    """The form of experts like this one; None where it does not do what experts do."""
    order = _order(expert, shapes) if len(shapes) in (2, 3) else None
    if order is None:
        return None
    *first, down = order
    if len(first) == 2 and _is_gate(expert, first, down, 1):
        first.reverse()
    names = dict(zip(PROJECTIONS[-len(order) :], [*first, down], strict=True))
    modules = tuple((projection, f"{{}}.{name}") for projection, name in names.items())
    return Form((), transposed=False, biased=getattr(expert, down).bias is not None, modules=modules)


def _order(expert: Any, shapes: dict[str, tuple[int, int]]) -> list[str] | None:
    """The names of its linear layers as an expert calls them, down last: what goes into the expert goes into all but
    that, which takes what is made of what they give, and gives what the expert does. None where it is otherwise."""
    import torch

    for hidden in dict.fromkeys(columns for _, columns in shapes.values()):
        calls = _Calls(shapes)
        states = calls.drawn(hidden)
        instead = {name: partial(calls.call, name) for name in shapes}
        try:
            found = with_layers(expert, instead)(states)
        except Exception:
            # Whatever a stranger's code raises: it is no expert as they are known here.
            continue
        if sorted(calls.names) != sorted(shapes):
            continue
        *first, down = calls.names
        fed = all(torch.equal(calls.given[name], states) for name in first)
        if fed and torch.is_tensor(found) and torch.equal(found, calls.gave[down]):
            return [*first, down]
    return None


class _Calls:
    """What the linear layers of an expert are called with, in order, and the random numbers that they give."""

    def __init__(self, shapes: dict[str, tuple[int, int]]) -> None:
        import torch

        self._shapes = shapes
        self._drawing = torch.Generator().manual_seed(0)
        self.names: list[str] = []
        self.given: dict[str, torch.Tensor] = {}
        self.gave: dict[str, torch.Tensor] = {}

    def drawn(self, width: int) -> "torch.Tensor":
        """Random numbers [rows, width]."""
        import torch

        return torch.rand(_ROWS, width, generator=self._drawing)

    def call(self, name: str, value: "torch.Tensor") -> "torch.Tensor":
        """Stands for the forward of a layer. Raises ValueError on what does not fit into it."""
        rows, columns = self._shapes[name]
        if tuple(value.shape) != (_ROWS, columns):
            raise ValueError(name)
        self.names.append(name)
        self.given[name], self.gave[name] = value, self.drawn(rows)
        return self.gave[name]


def _is_gate(expert: Any, first: Sequence[str], down: str, place: int) -> bool:
    """Whether, of two layers whose outputs are multiplied, the one at this place is bent and the other is not: the sign
    of what is not bent is that of the product."""
    import torch

    width = getattr(expert, down).in_features
    halves = torch.rand(2, _ROWS, width, generator=torch.Generator().manual_seed(0)) - 0.5
    step = between(expert, first, down)

    def keeps_sign(which: int) -> bool:
        turned = halves.clone()
        turned[which] *= -1
        return bool(torch.allclose(step(torch.cat([*turned], -1)), -step(torch.cat([*halves], -1)), atol=1e-6))

    return keeps_sign(1 - place) and not keeps_sign(place)
