"""Error compensation in a process of its own: `python -m mopeq_hub.quantization.gptq JOB.json`.

The original answers the calibration questions while the inputs X of every linear layer are summed up as X X^T, for as
many decoder layers at a time as memory holds; then each weight is rounded as `mopeq_hub.quantization.compensation` does
it. Progress goes to standard output, one number of finished decoder layers a line.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mopeq_hub import workplace
from mopeq_hub.experts import Expert, Layout, Matrix
from mopeq_hub.fidelity.inputs import Encoder
from mopeq_hub.model import Model, open_model
from mopeq_hub.quantization.calibration import (
    Inputs,
    calibration_inputs,
    chosen_experts,
    finish,
    load,
    read_job,
    save,
)
from mopeq_hub.quantization.compensation import Inverse, compensate
from mopeq_hub.quantization.packing import Packed

Hessians = dict[str, torch.Tensor]
"""X X^T [in, in], float32, by `input_of` the matrices that X goes into."""


def main(job_path: Path) -> None:
    job = read_job(job_path)
    opened, live = open_model(job["folder"]), load(job)
    if torch.cuda.is_available():
        live.to("cuda")
    inputs = calibration_inputs(job, Encoder(Path(job["folder"])))
    matrices = {int(layer): _of_layer(opened.layout, names) for layer, names in job["layers"].items()}
    reached: dict[int, set[int]] = {layer: set() for layer in opened.layout.experts_modules}
    for layers in layers_at_once(matrices, workplace.free_memory() // 2):
        hessians = collect(opened.layout, live, inputs, {layer: matrices[layer] for layer in layers}, reached)
        for layer in layers:
            save(job, layer, _compensated(opened, matrices[layer], hessians, job))
            print(1, flush=True)
    finish(job, inputs, reached)


def input_of(matrix: Matrix) -> str:
    """A name for what goes into a matrix; gate and up of an expert are given the same."""
    return matrix.name.removesuffix("up_proj") + "gate_proj" if matrix.projection == "up" else matrix.name


def layers_at_once(matrices: dict[int, list[Matrix]], room: int) -> Iterator[list[int]]:
    """Decoder layers in order, together as long as their Hessians take no more than `room` bytes."""
    group: list[int] = []
    taken = 0
    for layer, of_layer in sorted(matrices.items()):
        size = hessian_bytes(of_layer)
        if group and taken + size > room:
            yield group
            group, taken = [], 0
        group.append(layer)
        taken += size
    yield group


def hessian_bytes(matrices: list[Matrix]) -> int:
    """Bytes of the Hessians of what goes into these matrices."""
    return sum(4 * columns**2 for columns in {input_of(matrix): matrix.shape[1] for matrix in matrices}.values())


def collect(
    layout: Layout,
    live: Any,
    inputs: list[Inputs],
    matrices: dict[int, list[Matrix]],
    reached: dict[int, set[int]],
) -> Hessians:
    """The Hessians of what goes into the matrices of these layers; `reached` is told the experts that tokens went to."""
    hessians: Hessians = {}
    last = live.get_submodule(f"{layout.blocks}.{max(matrices)}")
    with _hooked(last.register_forward_hook(_stop)):
        with _hooked(*_hooks(layout, live, matrices, hessians, reached)), torch.inference_mode():
            for batch in inputs:
                with suppress(_StopError):
                    live(**{name: value.to(live.device) if torch.is_tensor(value) else value for name, value in batch.items()})
    return hessians
