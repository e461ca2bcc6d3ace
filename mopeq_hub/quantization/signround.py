"""SignRound in a process of its own, started by `mopeq_hub.processes`.

auto-round goes from one decoder layer to the next and adjusts scales and roundings of its linear layers by the signs of
their gradients, so that the decoder layer's output changes least (arXiv 2309.05516). It leaves each linear layer with
its rounded weight, scale and zero point, from which the codes are read. Progress goes to standard output, one number of
finished adjustments a line.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mopeq_hub.calibration import (
    Chosen,
    Inputs,
    calibration_inputs,
    called,
    let_gradients_through,
    load,
    numbers_of,
)
from mopeq_hub.errors import MopeqError
from mopeq_hub.modeling.registry import added
from mopeq_hub.packing import Packed, dequantize, pack
from mopeq_hub.processes import read_job
from mopeq_hub.quantization.handover import finish, save
from mopeq_hub.questions.inputs import Encoder

BATCHES = 4
"""That one adjustment looks at."""


def main(job_path: Path) -> None:
    job = read_job(job_path)
    model, encoder = load(job), Encoder(Path(job["folder"]), job["trusted"])
    inputs = calibration_inputs(job, encoder)
    watch = Watch(model, job["blocks"], job["experts"], min(BATCHES, len(inputs)))
    linears = tune(model, encoder, inputs, job)
    for layer, widths in job["layers"].items():
        packed = {
            name: packed_linear(linears[name], name, bits, job["symmetric"])
            for name, bits in widths.items()
            if bits < 16
        }
        save(job, layer, packed)
    finish(job, inputs, watch.reached())


def tune(model: Any, encoder: Encoder, inputs: list[Inputs], job: dict[str, Any]) -> dict[str, Any]:
    """The model's linear layers by name after tuning: `weight` rounded, `scale` and `zp` set where it was.

    To auto-round a batch of rows is one sample, so that samples of different lengths never meet in one tensor.
    """
    from auto_round import AutoRound

    on_gpu = torch.cuda.is_available()
    if added(model.config.model_type):
        # By its model type auto-round would take it for the original's code, and call modules by the names they have
        # there. Nothing but auto-round looks at it from here on.
        model.config.model_type = "mopeq"
    rounder = AutoRound(
        model,
        tokenizer=encoder.tokenizer,
        # Only a model with a processor is given its inputs as they are, and they are made by now.
        processor=encoder.tokenizer,
        scheme="W4A16",
        group_size=job["group_size"],
        sym=job["symmetric"],
        scale_dtype="fp16",
        layer_config={name: _asked(bits) for widths in job["layers"].values() for name, bits in widths.items()},
        to_quant_block_names=job["blocks"],
        dataset=inputs,
        nsamples=len(inputs),
        batch_size=1,
        gradient_accumulate_steps=min(BATCHES, len(inputs)),
        iters=job["iterations"],
        # Batches differ, so the least loss seen tells of an easy batch; the last step is the best where steps shrink.
        not_use_best_mse=True,
        seed=job["seed"],
        amp=on_gpu,
        device_map=0 if on_gpu else "cpu",
        low_cpu_mem_usage=False,
        enable_torch_compile=False,
        enable_deterministic_algorithms=on_gpu,
    )
    tuned, _ = rounder.quantize()
    return {name: module for name, module in tuned.named_modules() if isinstance(module, torch.nn.Linear)}


def _asked(bits: int) -> dict[str, Any]:
    return {"bits": bits} if bits < 16 else {"bits": bits, "data_type": "float"}


class Watch:
    """Tells each adjustment of each decoder layer, and remembers which experts were given a token while tuned."""

    def __init__(self, model: Any, blocks: str, experts: list[tuple[int, int, int, str]], batches: int) -> None:
        """experts: of each experts module the layer, the number of its first expert, how many they are, and the name.
        batches: how many one adjustment looks at."""
        self._batches, self._passes = batches, 0
        self._reached: dict[int, set[int]] = {layer: set() for layer, *_ in experts}
        for block in model.get_submodule(blocks):
            block.register_forward_hook(self._passed)
        for layer, first, count, name in experts:
            let_gradients_through(model, name)
            for module, choose in called(model.get_submodule(name), count):
                module.register_forward_pre_hook(self._routed(layer, first, choose), with_kwargs=True)

    def reached(self) -> dict[int, set[int]]:
        """The experts of each layer that were given a token. Raises MopeqError where the routing was not seen."""
        if not all(self._reached.values()):
            raise MopeqError("auto-round replaced the experts of this model, so that their tokens cannot be counted")
        return self._reached

    def _passed(self, *_: Any) -> None:
        # Passes without gradients only collect inputs and outputs.
        if torch.is_grad_enabled():
            self._passes += 1
            if self._passes % self._batches == 0:
                print(1, flush=True)

    def _routed(self, layer: int, first: int, choose: Chosen) -> Callable[..., None]:
        def note(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if torch.is_grad_enabled():
                chosen = choose(args, named)
                self._reached[layer].update(index + first for index in numbers_of(chosen))

        return note


def packed_linear(linear: Any, name: str, bits: int, symmetric: bool) -> Packed:
    """The packed form of a tuned linear layer.

    Raises MopeqError where it does not stand for the very weight that was tuned.
    """
    weight = linear.weight.detach().cpu()
    rows, columns = weight.shape
    scales = linear.scale.detach().cpu().reshape(rows, -1).to(torch.float16)
    groups = scales.shape[1]
    zeros = torch.as_tensor(linear.zp, device="cpu").detach().float()
    zeros = zeros.expand(rows, groups) if zeros.numel() == 1 else zeros.reshape(rows, groups)
    grouped = weight.float().reshape(rows, groups, -1) / scales.float()[..., None]
    codes = (grouped.round() + zeros[..., None]).clamp(0, 2**bits - 1).reshape(rows, columns)
    stored = zeros - 1 if symmetric else zeros
    packed = pack(codes.byte().numpy(), scales.numpy(), np.ascontiguousarray(stored.byte().numpy()), bits)
    if not torch.equal(torch.from_numpy(dequantize(packed, bits, symmetric)).to(weight.dtype), weight):
        raise MopeqError(f"auto-round left {name} with a weight that its scales and {bits} bits do not give")
    return packed
