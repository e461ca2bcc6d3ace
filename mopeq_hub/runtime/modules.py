"""Modules that compute with packed weights on the CPU: what they have in common, and a linear layer."""

import itertools
from abc import ABC, abstractmethod
from functools import cache
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from mopeq_hub.errors import MopeqError
from mopeq_hub.packing import PARTS
from mopeq_hub.runtime.matrices import PackedMatrix, Table, few, is_fixed, runs_of


class PackedModule(nn.Module, ABC):
    """Holds packed tensors as they are published, whatever dtype the model around it is changed to."""

    outputs: int
    """Numbers that it makes of a vector."""

    def __init__(self) -> None:
        super().__init__()
        self._tables: tuple[Table, ...] | None = None
        self._register()

    @abstractmethod
    def compute(self, states: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """What it makes of states [..., inputs]: [..., outputs], in their dtype."""

    @abstractmethod
    def tables(self) -> tuple[Table, ...]:
        """What the kernels read; made anew where the packed tensors are others or lie elsewhere."""

    def ready(self) -> tuple[Table, ...]:
        if self._tables is None:
            self._tables = self.tables()
        return self._tables

    def compile_for(self, dtype: torch.dtype) -> None:
        """Have what computes with vectors of this dtype compiled."""
        for table in self.ready():
            table.compile_for(dtype)

    def computed(self, states: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        """What it makes of states, through which no gradient passes; one operation where a graph is compiled."""
        if torch.compiler.is_compiling():
            return _in_a_graph(states, list(others), self._number, self.outputs)
        if torch.is_grad_enabled() and states.requires_grad:
            return _WithoutGradient.apply(self, states, *others)  # type: ignore[no-any-return]
        return self.compute(states, *others)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """A change of dtype leaves packed tensors as they are, a change of device is refused."""
        device = fn(torch.empty(0)).device
        if device.type != "cpu":
            raise MopeqError(
                f"this model computes with packed weights on the CPU, not on {device}",
                "load it by from_pretrained for a GPU, where auto-round has kernels",
            )
        for child in self.children():
            child._apply(fn)
        return self

    def _register(self) -> None:
        self._number = next(_numbers)
        _modules[self._number] = self

    def __getstate__(self) -> dict[str, Any]:
        # Tables hold addresses of this process.
        return {**self.__dict__, "_tables": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._register()


_numbers = itertools.count()
_modules: "WeakValueDictionary[int, PackedModule]" = WeakValueDictionary()
"""By numbers, since a compiled graph holds no modules."""


@torch.library.custom_op("mopeq_hub::computed", mutates_args=())
def _in_a_graph(states: torch.Tensor, others: list[torch.Tensor], number: int, outputs: int) -> torch.Tensor:
    return _modules[number].compute(states, *others)


@_in_a_graph.register_fake
def _shaped(states: torch.Tensor, others: list[torch.Tensor], number: int, outputs: int) -> torch.Tensor:
    return states.new_empty(*states.shape[:-1], outputs)


class _WithoutGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: PackedModule, states: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return module.compute(states.detach(), *others)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        raise MopeqError("no gradient passes through packed weights", "train the original; this is for inference")


class PackedLinear(PackedModule):
    """A linear layer whose weight is packed; in place of `nn.Linear`, with the tensors of auto-round's."""

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, like: nn.Linear, shapes: dict[str, torch.Tensor], offset: int) -> None:
        """like: the layer that it takes the place of. shapes: tensors on the meta device by `PARTS`. offset: what is
        added to zero points as they are stored."""
        super().__init__()
        self.in_features, self.out_features, self.offset = like.in_features, like.out_features, offset
        self.outputs = like.out_features
        for part in PARTS:
            self.register_buffer(part, shapes[part])
        self.register_buffer("bias", None if like.bias is None else like.bias.detach())

    def tables(self) -> tuple[Table]:
        bias = None if self.bias is None else self.bias.float()
        matrix = PackedMatrix(self.qweight, self.qzeros, self.scales, bias, self.offset)
        matrix.check(self.out_features, self.in_features, "a linear layer")
        return (Table([[matrix]], self.out_features, self.in_features),)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Of states [..., in_features], in whatever dtype, [..., out_features]."""
        return self.computed(states)

    def compute(self, states: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        (table,) = self.ready()
        if states.numel() == self.in_features:
            return table.of_one(states)
        vectors = states.reshape(-1, self.in_features)
        count = len(vectors)
        if count <= few(states.dtype):
            products = table.multiply(vectors, _neighbours(count), count, fixed=is_fixed(vectors.dtype))
        else:
            products = table.product(vectors)
        return products.to(states.dtype).view(*states.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        bits = self.qweight.shape[0] * 32 // self.in_features
        return f"in_features={self.in_features}, out_features={self.out_features}, bits={bits}"


@cache
def _neighbours(count: int) -> torch.Tensor:
    """The runs of so many vectors for one matrix."""
    return torch.tensor(runs_of(0, 0, count), dtype=torch.int64)
