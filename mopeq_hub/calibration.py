"""What a process that runs the original works with: model, its weights rounded, inputs made of questions."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mopeq_hub.checkpoint import use_safetensors
from mopeq_hub.experts import Matrix
from mopeq_hub.families.base import ExpertsModule
from mopeq_hub.families.gating import gate_of
from mopeq_hub.families.speaking import speaking
from mopeq_hub.model import Model
from mopeq_hub.packing import Packed, dequantize, quantize
from mopeq_hub.questions import read_questions
from mopeq_hub.questions.inputs import MAX_TOKENS, Encoder, Row, batches

Inputs = dict[str, Any]
"""What the model's forward is called with: tensors of a batch of rows, and `use_cache`."""


def load(job: dict[str, Any]) -> Any:
    """The original on the CPU; in float32 where it will also compute there, and as it is stored for a GPU."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    auto_class = getattr(transformers, job["auto_class"])
    safe = use_safetensors(Path(job["folder"]))
    trusted = job.get("trusted", False)
    options = {"dtype": dtype, "use_safetensors": safe, "trust_remote_code": trusted}
    return speaking(auto_class.from_pretrained(job["folder"], **options).eval())


class Rounded:
    """Weights of a model as each width leaves them; their packed forms are kept."""

    def __init__(self, model: Model, group_size: int, symmetric: bool, search: bool) -> None:
        self._checkpoint = model.checkpoint
        self._settings = group_size, symmetric, search
        self._packed: dict[tuple[str, int], Packed] = {}

    def weight(self, matrix: Matrix, bits: int) -> torch.Tensor:
        """The matrix [out, in] at so many bits, float32."""
        group_size, symmetric, search = self._settings
        key = matrix.name, bits
        if key not in self._packed:
            self._packed[key] = quantize(matrix.read(self._checkpoint), bits, group_size, symmetric, search)
        return torch.from_numpy(dequantize(self._packed[key], bits, symmetric))


def calibration_inputs(job: dict[str, Any], encoder: Encoder) -> list[Inputs]:
    """The calibration questions with their answers, in batches."""
    questions = read_questions(Path(job["calibration"]) if job["calibration"] else None)
    questions = questions.askable(encoder.takes_pictures)
    return inputs_of(encoder.rows(list(questions.items), with_answer=True))


def inputs_of(rows: list[Row]) -> list[Inputs]:
    """What the rows' batches are called with.

    They are as large as their tokens allow, wherever an answer begins: a step of tuning looks at a few of them only.
    """
    whole = [replace(row, prompt=0) for row in rows]
    return [{**inputs, "use_cache": False} for _, inputs in batches(whole, MAX_TOKENS)]


class LiveExpert:
    """One expert of a live experts module, step by step."""

    def __init__(self, module: Any, held: ExpertsModule, index: int) -> None:
        """index: the expert's number in its layer."""
        self._module, self._form, self._place = module, held.form, index - held.first
        self._names = list(held.form.projections.values())

    def narrowed(self, states: torch.Tensor) -> torch.Tensor:
        """What its first matrices make of states [t, hidden]: gate and up side by side, or up alone."""
        return torch.nn.functional.linear(states, self.weight(0), self.bias(0))

    def gated(self, narrowed: torch.Tensor) -> torch.Tensor:
        """What goes into down [t, width]."""
        return gate_of(self._module, self._form, self._place)(narrowed)

    def finished(self, output: torch.Tensor) -> torch.Tensor:
        """What the expert gives [t, hidden], of what down makes."""
        bias = self.bias(1)
        output = output if bias is None else output + bias
        return self._module.post_expert_norm(output) if self._form.normed else output

    def slope_before(self, slope: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What a change of what down makes is worth [..., t, hidden], of what one of what the expert gives is; hidden
        [t, width] is what goes into down."""
        if not self._form.normed:
            return slope
        with torch.enable_grad():
            output = (hidden @ self.weight(1).T).detach().requires_grad_()
            given = self.finished(output)
            return torch.stack([torch.autograd.grad(given, output, each, retain_graph=True)[0] for each in slope])

    def weight(self, part: int) -> torch.Tensor:
        """The weight [out, in] of the first matrices, stacked, or of down."""
        if not self._form.fused:
            return _stacked([linear.weight for linear in self._linears(part)])
        weight = getattr(self._module, self._form.fused[part].name)[self._place]
        return weight.T if self._form.transposed else weight

    def bias(self, part: int) -> torch.Tensor | None:
        """Their bias [out], None where they have none."""
        if not self._form.biased:
            return None
        if not self._form.fused:
            return _stacked([linear.bias for linear in self._linears(part)])
        return getattr(self._module, f"{self._form.fused[part].name}_bias")[self._place]  # type: ignore[no-any-return]

    def _linears(self, part: int) -> list[Any]:
        """The linear layers of an expert that is a module of its own: the first ones, or down alone."""
        names = self._names[-1:] if part else self._names[:-1]
        return [self._module.get_submodule(name.format(self._place)) for name in names]


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


Chosen = Callable[[tuple[Any, ...], dict[str, Any]], torch.Tensor]
"""Says of what a module is called with which of an experts module's experts each token is for, as `chosen_experts`."""


def called(module: Any, count: int) -> Iterator[tuple[Any, Chosen]]:
    """The modules that are called with what goes into the `count` experts of a live experts module: that itself or,
    where it is a list, each expert, on its tokens alone."""
    if not isinstance(module, torch.nn.ModuleList):
        yield module, partial(chosen_experts, count=count)
        return
    for place, expert in enumerate(module):
        yield expert, partial(_all_to, place)


def _all_to(place: int, args: tuple[Any, ...], named: dict[str, Any]) -> torch.Tensor:
    states = next(iter((*args, *named.values())))
    return states.new_full((*states.shape[:-1], 1), place, dtype=torch.long)


def let_gradients_through(live: Any, name: str) -> None:
    """Have experts that a model calls one by one be part of the graph that gradients go through, though code that is
    meant for answering alone calls them without; where whoever called their layer wants none, nothing changes.

    name: of their list in the live model.
    """
    module = live.get_submodule(name)
    if not isinstance(module, torch.nn.ModuleList):
        return
    wanted = False

    def note(*_: Any) -> None:
        nonlocal wanted
        wanted = torch.is_grad_enabled()

    def enable(*_: Any) -> None:
        # Until the end of what switched gradients off, which puts back what was before it.
        if wanted:
            torch.set_grad_enabled(True)

    live.get_submodule(name.rpartition(".")[0]).register_forward_pre_hook(note)
    for expert in module:
        expert.register_forward_pre_hook(enable)


NO_EXPERT = -1
"""Chosen by a token that no expert of its layer has room for, where they take no more than so many."""


def chosen_experts(args: tuple[Any, ...], named: dict[str, Any], count: int) -> torch.Tensor:
    """The numbers of each token's experts [..., k] among the `count` of an experts module, by what it is called with,
    the first its hidden states: the one tensor of whole numbers, or of a flag for each expert.

    Where there is none, each expert is given all tokens one after the other, as zeros those that are not for it; then
    [count * tokens, 1].
    """
    states, *others = (*args, *named.values())
    chosen = next((value for value in others if torch.is_tensor(value) and not value.is_floating_point()), None)
    if chosen is None:
        own = torch.arange(count, device=states.device)[:, None]
        return torch.where(states.view(count, -1, states.shape[-1]).any(-1), own, NO_EXPERT).view(-1, 1)
    if chosen.dim() == states.dim():
        return chosen
    return torch.where(chosen.any(-1), chosen.argmax(-1), NO_EXPERT)


def numbers_of(chosen: torch.Tensor) -> list[int]:
    """The experts that any token chose."""
    return [index for index in chosen.unique().tolist() if index != NO_EXPERT]
