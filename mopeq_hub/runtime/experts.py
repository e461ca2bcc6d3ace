"""The routed experts of a layer as one module: all packed matrices, and what tokens that a router sent come to."""

from typing import Any

import torch
from torch import nn

from mopeq_hub.families.base import Form
from mopeq_hub.families.gating import gate_of
from mopeq_hub.packing import PARTS
from mopeq_hub.runtime.matrices import Experts, PackedMatrix, Table, few, is_fixed, runs_of
from mopeq_hub.runtime.modules import PackedModule

_AT_ONCE = 1024
"""Vectors that experts with few of them are given together, so that what lies between the matrices stays small."""
Tensors = dict[str, torch.Tensor]


class PackedExperts(PackedModule):
    """In place of an experts module of transformers, called as that is.

    `packed` holds all tensors by their published names within the module (`3.gate_proj.qweight`); no module is made for
    an expert. `shell`, the module that it takes the place of, stays for its activation, without weights of experts and
    without being a part of the model; other parts of it, such as a norm, become parts of this one.
    """

    def __init__(self, experts: nn.Module, form: Form, offset: int) -> None:
        """experts: the module on the meta device. offset: what is added to zero points as they are stored."""
        super().__init__()
        wide = getattr(experts, form.fused[-1].name)
        self.count = int(wide.shape[0])
        self.hidden, self.width = (int(size) for size in (wide.shape[2:0:-1] if form.transposed else wide.shape[1:]))
        for part in form.fused:
            for name in (part.name, *([f"{part.name}_bias"] if form.biased else [])):
                delattr(experts, name)
        self.form, self.offset, self.outputs, self.packed = form, offset, self.hidden, Tensors()
        self._in_one_region: Experts | None = None
        self.__dict__["shell"] = experts
        for name, child in experts.named_children():
            self.add_module(name, child)

    def names(self) -> list[str]:
        """Of all tensors that it holds."""
        parts = (*PARTS, *(("bias",) if self.form.biased else ()))
        modules = self.form.projections.values()
        return [f"{module.format(index)}.{part}" for index in range(self.count) for module in modules for part in parts]

    def tables(self) -> tuple[Table, Table]:
        """Of the first matrices, and of down."""
        *first, down = self.form.projections.values()
        tables = self._table(first, self.width, self.hidden), self._table([down], self.hidden, self.width)
        self._in_one_region = Experts(*tables) if self._is_plain() else None
        return tables

    def _table(self, modules: list[str], rows: int, columns: int) -> Table:
        return Table([[self._matrix(module.format(index), rows, columns) for module in modules]
                      for index in range(self.count)], rows, columns)  # fmt: skip

    def _matrix(self, name: str, rows: int, columns: int) -> PackedMatrix:
        bias = self.packed[f"{name}.bias"].float() if self.form.biased else None
        qweight, qzeros, scales = (self.packed[f"{name}.{part}"] for part in PARTS)
        matrix = PackedMatrix(qweight, qzeros, scales, bias, self.offset)
        matrix.check(rows, columns, name)
        return matrix

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Of hidden states [tokens, hidden] and, in whatever order, the numbers of each token's experts [tokens, k] and
        their weights [tokens, k], what the experts make of them [tokens, hidden].

        Without numbers the states are those of all tokens for each expert, [experts * tokens, hidden], zeros where one
        is not for it, and what is made of each stays apart.
        """
        others = [value for value in (*args, *kwargs.values()) if torch.is_tensor(value)]
        # Numbers first, then weights.
        others.sort(key=torch.is_floating_point)
        return self.computed(hidden_states, *others)

    def compute(self, states: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        if not others:
            return self._unrouted(states)
        chosen, weights = others
        self.ready()
        if self._in_one_region is not None and states.numel() == self.hidden:
            return self._in_one_region(states, chosen, weights)
        size = chosen.shape[-1]
        return self._routed(states, chosen.reshape(-1, size), weights.detach().float().reshape(-1, size))

    def _routed(self, states: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        vectors = states.reshape(-1, self.hidden)
        if len(vectors) == 1:
            made = self._of_one(vectors, chosen[0], weights[0])
        else:
            tokens = torch.arange(len(chosen))[:, None].expand_as(chosen)
            made = self._of_many(vectors, chosen.flatten(), weights.flatten(), tokens.flatten())
        return made.to(states.dtype).view_as(states)

    def _unrouted(self, states: torch.Tensor) -> torch.Tensor:
        vectors = states.reshape(self.count, -1, self.hidden)
        experts, tokens = vectors.any(-1).nonzero(as_tuple=True)
        rows = experts * vectors.shape[1] + tokens
        made = self._of_many(vectors.flatten(0, 1), experts, torch.ones(len(rows)), rows)
        return made.to(states.dtype).view_as(states)

    def _of_one(self, vector: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """What a token's experts make of its vector [1, hidden]: [1, hidden], float32."""
        first, down = self.ready()
        # A number that no expert has stands for one that computes elsewhere, or for none.
        numbers = [number for number in chosen.tolist() if 0 <= number < self.count]
        if len(numbers) < len(chosen):
            weights = weights[(chosen >= 0) & (chosen < self.count)]
        runs = torch.tensor([(number, place, 1) for place, number in enumerate(numbers)], dtype=torch.int64).view(-1, 3)
        fixed = is_fixed(vector.dtype)
        narrowed = self._gated(first.multiply(vector, runs, len(runs), step=0, fixed=fixed))
        return weights[None] @ self._finished(down.multiply(narrowed, runs, len(runs), fixed=fixed))

    def _of_many(
        self, vectors: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, rows: torch.Tensor
    ) -> torch.Tensor:
        """Sums [n, hidden], float32: vector `rows[i]` of [n, hidden] goes through expert `chosen[i]`, and what comes
        out, times `weights[i]`, is added where it came from."""
        made = torch.zeros(len(vectors), self.hidden)
        order = chosen.argsort(stable=True)
        counts = torch.bincount(chosen[chosen >= 0], minlength=self.count)[: self.count].tolist()
        start, most = int((chosen < 0).sum()), few(vectors.dtype)
        together: list[tuple[int, torch.Tensor]] = []
        for expert, count in enumerate(counts):
            mine = order[start : start + count]
            start += count
            if count > most:
                into = rows[mine]
                made.index_add_(0, into, self._expert(vectors[into], expert).mul_(weights[mine, None]))
            elif count:
                together.append((expert, mine))
            if together and (expert == self.count - 1 or sum(len(each) for _, each in together) >= _AT_ONCE):
                mine = torch.cat([each for _, each in together])
                given = self._experts(vectors[rows[mine]], [(each, len(part)) for each, part in together])
                made.index_add_(0, rows[mine], given.mul_(weights[mine, None]))
                together.clear()
        return made

    def _experts(self, vectors: torch.Tensor, counts: list[tuple[int, int]]) -> torch.Tensor:
        """What experts make of vectors [n, hidden], so many neighbours for each of them: [n, hidden], float32."""
        runs: list[tuple[int, int, int]] = []
        taken = 0
        for expert, count in counts:
            runs += runs_of(expert, taken, count)
            taken += count
        table = torch.tensor(runs, dtype=torch.int64)
        first, down = self.ready()
        fixed = is_fixed(vectors.dtype)
        narrowed = self._gated(first.multiply(vectors, table, taken, fixed=fixed))
        return self._finished(down.multiply(narrowed, table, taken, fixed=fixed))

    def _expert(self, vectors: torch.Tensor, expert: int) -> torch.Tensor:
        """What one expert makes of many vectors [n, hidden], float32."""
        first, down = self.ready()
        return self._finished(down.product(self._gated(first.product(vectors, expert)), expert)).float()

    def _gated(self, narrowed: torch.Tensor) -> torch.Tensor:
        return gate_of(self.shell, self.form)(narrowed).contiguous()

    def _finished(self, output: torch.Tensor) -> torch.Tensor:
        """What an expert gives, of what down makes."""
        return self.get_submodule("post_expert_norm")(output) if self.form.normed else output

    def _is_plain(self) -> bool:
        """Whether an expert is down of SiLU(gate) * up and nothing else, found by trying, with large numbers too, since
        some kinds limit them."""
        if self.form.normed or len(self.form.projections) != 3:
            return False
        tried = torch.randn(64, 2 * self.width, generator=torch.Generator().manual_seed(0))
        tried *= torch.logspace(-2, 4, 64)[:, None]
        gate, up = tried.chunk(2, -1)
        found = self._gated(tried)
        return found.shape == gate.shape and torch.allclose(found, nn.functional.silu(gate) * up, rtol=1e-6)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_in_one_region": None}

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor for name, tensor in self.packed.items()})

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        for name in self.names():
            if prefix + name in state_dict:
                self.packed[name] = state_dict[prefix + name]
            else:
                missing_keys.append(prefix + name)
        self._tables = None

    def extra_repr(self) -> str:
        return f"experts={self.count}, hidden={self.hidden}, width={self.width}"
