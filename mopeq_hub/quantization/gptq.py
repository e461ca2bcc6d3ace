"""Error compensation in a process of its own, started by `mopeq_hub.processes`.

The original answers the calibration questions while the inputs X of every linear layer are summed up as X X^T, for as
many decoder layers at a time as memory holds; then each weight is rounded as `mopeq_hub.quantization.compensation` does
it. Progress goes to standard output, one number of finished decoder layers a line.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from mopeq_hub import workplace
from mopeq_hub.calibration import Chosen, Inputs, LiveExpert, calibration_inputs, called, load, numbers_of
from mopeq_hub.experts import Layout, Matrix
from mopeq_hub.families.base import ExpertsModule
from mopeq_hub.model import Model, open_model
from mopeq_hub.packing import Packed
from mopeq_hub.processes import read_job
from mopeq_hub.quantization.calibrated import by_layer, hessian_bytes, input_name, input_of
from mopeq_hub.quantization.compensation import Inverse, compensate
from mopeq_hub.quantization.handover import finish, save
from mopeq_hub.questions.inputs import Encoder, placed

Hessians = dict[str, torch.Tensor]
"""X X^T [in, in], float32, by `input_of` the matrices that X goes into."""


def main(job_path: Path) -> None:
    job = read_job(job_path)
    original = open_model(job["folder"], named=False, trust_remote_code=job["trusted"])
    live = load(job)
    if torch.cuda.is_available():
        live.to("cuda")
    inputs = calibration_inputs(job, Encoder(Path(job["folder"]), job["trusted"]))
    layers = by_layer(original.layout)
    reached: dict[int, set[int]] = {layer: set() for layer in original.layout.modules_of}
    for together in layers_at_once(layers, workplace.free_memory() // 2):
        hessians = collect(original.layout, live, inputs, together, reached)
        for layer in together:
            save(job, layer, _compensated(original, layers[layer], hessians, job))
            print(1, flush=True)
    finish(job, inputs, reached)


def layers_at_once(layers: dict[int, list[Matrix]], room: int) -> Iterator[list[int]]:
    """Decoder layers in order, together as long as their Hessians take no more than `room` bytes."""
    together: list[int] = []
    for layer in layers:
        if together and sum(hessian_bytes(layers[each]) for each in [*together, layer]) > room:
            yield together
            together = []
        together.append(layer)
    yield together


def collect(
    layout: Layout, live: Any, inputs: list[Inputs], layers: list[int], reached: dict[int, set[int]]
) -> Hessians:
    """The Hessians of what goes into the matrices of these decoder layers, by the original's own activations.

    reached: is told the experts of each layer that a token was sent to.
    """
    sums: Hessians = {}
    last = next(stack for stack in reversed(layout.stacks) if stack.first <= max(layers))
    hooks = [live.get_submodule(f"{last.name}.{max(layers) - last.first}").register_forward_hook(_stop)]
    for matrix in layout.rest:
        if layout.layer_of[matrix.source] in layers:
            hooks.append(live.get_submodule(matrix.name).register_forward_pre_hook(_into_linear(sums, matrix.name)))
    for held in layout.modules:
        if held.layer in layers:
            experts = live.get_submodule(held.name)
            for module, choose in called(experts, held.count):
                hook = _into_experts(sums, experts, held, choose, reached[held.layer])
                hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    with torch.inference_mode():
        for batch in inputs:
            with suppress(_EnoughError):
                live(**placed(batch, live.dtype, live.device))
    for hook in hooks:
        hook.remove()
    return sums


class _EnoughError(Exception):
    """Nothing behind this decoder layer is of interest now."""


def _stop(*_: Any) -> None:
    raise _EnoughError


def _into_linear(sums: Hessians, name: str) -> Callable[..., None]:
    return lambda _, args: _add(sums, name, args[0])


def _into_experts(
    sums: Hessians, experts: Any, held: ExpertsModule, choose: Chosen, reached: set[int]
) -> Callable[..., None]:
    """Sums what goes into each expert's first matrices, and into its down, of all tokens that a module gets which is
    called with them."""
    first = next(iter(held.form.projections))

    def look(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        chosen = choose(args, named).flatten(0, -2)
        states = next(iter((*args, *named.values()))).flatten(0, -2)
        for place in numbers_of(chosen):
            index = place + held.first
            reached.add(index)
            mine, expert = states[(chosen == place).any(-1)], LiveExpert(experts, held, index)
            _add(sums, input_name(held.matrix_name(index, first)), mine)
            _add(sums, held.matrix_name(index, "down"), expert.gated(expert.narrowed(mine)))

    return look


def _add(sums: Hessians, name: str, inputs: torch.Tensor) -> None:
    rows = inputs.flatten(0, -2).float()
    product = (rows.T @ rows).cpu()
    sums[name] = sums[name].add_(product) if name in sums else product


def _compensated(model: Model, matrices: list[Matrix], hessians: Hessians, job: dict[str, Any]) -> dict[str, Packed]:
    """The packed weights of those matrices that are quantized and that any token went into."""
    widths = {name: bits for names in job["layers"].values() for name, bits in names.items()}
    packed: dict[str, Packed] = {}
    of_input: dict[str, list[Matrix]] = {}
    for matrix in matrices:
        if widths[matrix.name] < 16 and input_of(matrix) in hessians:
            of_input.setdefault(input_of(matrix), []).append(matrix)
    for name, alike in of_input.items():
        inverse = Inverse(hessians[name])
        for matrix in alike:
            weight = matrix.read(model.checkpoint)
            bits = widths[matrix.name]
            packed[matrix.name] = compensate(weight, inverse, bits, job["group_size"], job["symmetric"])
    return packed
