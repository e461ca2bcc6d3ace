"""One model tuned by auto-round in a process of its own: `python -m mopeq_hub.quantization.signround_worker JOB.json`.

auto-round adds tuning to each linear layer of one decoder layer after another and adjusts scales and roundings by the
sign of their gradient, so that the decoder layer's output changes least (SignRound, arXiv 2309.05516). It leaves the
weights rounded and each linear layer with its scale and zero point, from which the codes are read; files are written by
this project alone. The job is a JSON file, the result another; progress goes to standard output, one number of finished
adjustments a line.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.inputs import MAX_TOKENS, Encoder, Row
from mopeq_hub.fidelity.questions import read_questions
from mopeq_hub.quantization.packing import Packed, dequantize, pack

BATCHES = 4
"""Batches that one adjustment looks at; more cost time in proportion and gained nothing on the bundled model."""


def main(job_path: Path) -> None:
    job = json.loads(job_path.read_text("utf-8"))
    torch.set_num_threads(job["threads"])
    folder = Path(job["folder"])
    questions = read_questions(Path(job["calibration"]) if job["calibration"] else None)
    model = load(folder, job["auto_class"])
    encoder = Encoder(folder)
    batches = list(calibration_batches(encoder.rows(list(questions.items), with_answer=True)))
    watch = Watch(model, job["blocks"], job["experts"], min(BATCHES, len(batches)))
    linears = tune(model, encoder, batches, job)
    for number, layer in enumerate(job["layers"]):
        save(linears, layer, job["symmetric"], Path(job["target"]) / f"{number}.safetensors")
    tokens = sum(batch["input_ids"].numel() for batch in batches)
    Path(job["result"]).write_text(json.dumps({"tokens": tokens, "reached": watch.reached()}), "utf-8")


def load(folder: Path, auto_class: str) -> Any:
    """The original on the CPU; in float32 where it will also compute there, and as it is stored for a GPU."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dtype = "auto" if torch.cuda.is_available() else torch.float32
    return getattr(transformers, auto_class).from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()


def calibration_batches(rows: list[Row]) -> Iterator[dict[str, Any]]:
    """Inputs of rows of one length and one kind together, at most MAX_TOKENS tokens of them, so that nothing is
    padded."""
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault((row.length, tuple(sorted(row.inputs))), []).append(row)
    for same in alike.values():
        count = max(1, MAX_TOKENS // same[0].length)
        for start in range(0, len(same), count):
            part = [row.inputs for row in same[start : start + count]]
            yield {**{name: torch.cat([inputs[name] for inputs in part]) for name in part[0]}, "use_cache": False}


def tune(model: Any, encoder: Encoder, batches: list[dict[str, Any]], job: dict[str, Any]) -> dict[str, Any]:
    """The model's linear layers by name after tuning: `weight` rounded, `scale` and `zp` set where it was.

    To auto-round a batch of rows is one sample, so that samples of different lengths never meet in one tensor.
    """
    from auto_round import AutoRound

    on_gpu = torch.cuda.is_available()
    rounder = AutoRound(
        model,
        tokenizer=encoder.tokenizer,
        # Only a model with a processor is given its inputs as they are, and they are made by now.
        processor=encoder.tokenizer,
        scheme="W4A16",
        group_size=job["group_size"],
        sym=job["symmetric"],
        scale_dtype="fp16",
        layer_config={name: _asked(bits) for layer in job["layers"] for name, bits in layer.items()},
        to_quant_block_names=job["blocks"],
        dataset=batches,
        nsamples=len(batches),
        batch_size=1,
        gradient_accumulate_steps=min(BATCHES, len(batches)),
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

    def __init__(self, model: Any, blocks: str, experts: dict[str, str], batches: int) -> None:
        """experts: name of the experts module by layer. batches: how many one adjustment looks at."""
        self._batches, self._passes = batches, 0
        self._reached: dict[str, set[int]] = {layer: set() for layer in experts}
        for block in model.get_submodule(blocks):
            block.register_forward_hook(self._passed)
        for layer, name in experts.items():
            model.get_submodule(name).register_forward_pre_hook(self._routed(layer), with_kwargs=True)

    def reached(self) -> dict[str, list[int]]:
        """The experts of each layer that were given a token. Raises MopeqError where the routing was not seen."""
        if not all(self._reached.values()):
            raise MopeqError("auto-round replaced the experts of this model, so that their tokens cannot be counted")
        return {layer: sorted(seen) for layer, seen in self._reached.items()}

    def _passed(self, *_: Any) -> None:
        # Passes without gradients only collect inputs and outputs.
        if torch.is_grad_enabled():
            self._passes += 1
            if self._passes % self._batches == 0:
                print(1, flush=True)

    def _routed(self, layer: str) -> Callable[..., None]:
        def note(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if torch.is_grad_enabled():
                chosen = next(value for value in (*args, *named.values()) if not value.is_floating_point())
                self._reached[layer].update(chosen.unique().tolist())

        return note


def save(linears: dict[str, Any], widths: dict[str, int], symmetric: bool, path: Path) -> None:
    """Keep the packed weights of the named linear layers in a safetensors file; those of 16 bits are left out."""
    from safetensors.numpy import save_file

    tensors = {}
    for name, bits in widths.items():
        if bits < 16:
            for part, data in packed_linear(linears[name], name, bits, symmetric).tensors().items():
                tensors[f"{name}.{part}"] = data
    save_file(tensors, path)


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
