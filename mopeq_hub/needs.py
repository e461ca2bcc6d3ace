"""What a run will need of its machine, known from headers alone, and whether the machine has it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mopeq_hub import workplace
from mopeq_hub.errors import MopeqError
from mopeq_hub.kept import kept_dtype
from mopeq_hub.model import Model
from mopeq_hub.quantization.shards import TensorPlan
from mopeq_hub.source import HubSource

PROGRAM_BYTES = 1_000_000_000
"""Memory of Python with torch and transformers, and what the kernels and the queue of stages hold."""
_SOURCE_SHARDS, _OUTPUT_UNITS = 3, 2
"""Passing through: the shard at work, the next one, and one more to spare; the files being written and those being
sent."""


@dataclass(frozen=True)
class Needs:
    """Bytes. passing: source shards are let go once they are quantized, and on the Hub what was made of them once it
    is sent; the profile then needs a download of its own.

    memory: of one process at its peak. disk: where output is built. cache: in the Hub client's cache.
    """

    memory: int
    disk: int
    cache: int
    download: int
    upload: int
    passing: bool


def needs_of(
    model: Model, outputs: Sequence[int], place: Path, *, to_hub: bool, profiled: bool, passing: bool | None = None
) -> Needs:
    """What quantizing and publishing will take.

    outputs: bytes that come of each file of the source. place: where output files are built.

    passing: None chooses it where the disk cannot hold source and output together.
    """
    missing = [model.source.files()[shard] for shard in model.checkpoint.shards if not _here(model, shard)]
    memory = PROGRAM_BYTES + 2 * largest_tensor(model)
    upload = sum(outputs) if to_hub else 0
    held = Needs(memory, sum(outputs), sum(missing), sum(missing), upload, False)
    if passing is None:
        passing = bool(missing) and _trouble(held, place) is not None
    if not passing:
        return held
    built = min(sum(outputs), _OUTPUT_UNITS * max(outputs)) if to_hub else sum(outputs)
    through = min(sum(missing), _SOURCE_SHARDS * max(missing, default=0))
    return Needs(memory, built + through, 0, sum(missing) * (1 if profiled else 2), upload, True)


def largest_tensor(model: Model) -> int:
    """Bytes of the largest tensor of the checkpoint, or of what is made of several, whichever is more."""
    made = (
        TensorPlan(kept.name, kept_dtype(model.checkpoint, kept.sources[0]), kept.shape).nbytes
        for kept in model.layout.kept.values()
        if kept.conversion
    )
    return max([model.checkpoint.largest.nbytes, *made])


def check_fits(needs: Needs, place: Path) -> None:
    """Raises MopeqError where the machine has less memory or disk than that."""
    trouble = _trouble(needs, place)
    if trouble:
        raise MopeqError(trouble, "free some space there, or set MOPEQ_HOME and HF_HOME to a larger disk")
    available = workplace.free_memory()
    if needs.memory > available:
        raise MopeqError(
            f"this needs {needs.memory / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are free",
            "close what else runs, or use a larger machine",
        )


def _trouble(needs: Needs, place: Path) -> str | None:
    """Which disk has too little room, None where all have enough."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    wanted = [(place, needs.disk), (cache, needs.cache)]
    if workplace.device(place) == workplace.device(cache):
        wanted = [(place, needs.disk + needs.cache)]
    for where, size in wanted:
        free = workplace.free_disk(where)
        if size > free:
            return f"this needs {size / 1e9:.1f} GB of disk at {where}, and {free / 1e9:.1f} GB are free"
    return None


def _here(model: Model, shard: str) -> bool:
    return not isinstance(model.source, HubSource) or model.source.cached(shard)
