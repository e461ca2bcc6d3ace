"""A published model answering: its original, auto-round's layers with and without its library, and the runtime; and
from how many tokens on unpacking a weight pays."""

import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.table import Table as RichTable

from mopeq_hub import Recipe, quantize
from mopeq_hub.kernels.jobs import WIDTHS
from mopeq_hub.packing import Packed, pack
from mopeq_hub.runtime.matrices import PackedMatrix, Table, runs_of
from tests.bench.checkpoints import ANSWERING, ANSWERING_SMALL, nbytes, write
from tests.bench.tables import Settings, in_turns, table, times

_COLUMNS = (
    "model", "experts, tokens/s", "whole, tokens/s", "512 tokens, s", "load, s", "memory, GB", "of its files",
    "| experts", "whole", "prompt", "load",
)  # fmt: skip
_LIBRARY = "auto-round-lib"
_COUNTS = (1, 2, 4, 8, 16, 24, 32, 64, 128, 256, 512)


def runtime(settings: Settings) -> Iterator[RichTable]:
    source = write(settings.folder / "answering", ANSWERING_SMALL if settings.small else ANSWERING)
    repo = quantize(str(source), settings.folder / "answering-quantized", Recipe()).folder
    kinds: dict[str, tuple[str, Path, Path | None]] = {"original, bf16": ("original", source, None)}
    note = ""
    if settings.rivals:
        kinds["auto-round"] = ("auto-round", repo, None)
        if library := _library(settings.folder / "library"):
            kinds[f"auto-round, {_LIBRARY}"] = ("auto-round", repo, library)
        else:
            note = f"{_LIBRARY} could not be installed. "
    kinds["mopeq_hub.load"] = ("load", repo, None)
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
    for _ in range(settings.turns):
        for name, (how, folder, more) in kinds.items():
            taken[name].append(_answer(how, folder, more, settings))
    title = f"Answering: experts of 2, 3 and 4 bits of {nbytes(source) / 1e9:.1f} GB, {nbytes(repo) / 1e9:.2f} GB"
    note += (
        "Right of the bar, ratios to the original's; targets: 6x, 2.5x, 0.8x, load 1.0x at most, memory 1.1x at most."
    )
    sizes = {name: nbytes(folder) for name, (_, folder, _) in kinds.items()}
    yield table(title, _COLUMNS, _rows(taken, sizes), note)
    turns = _answer("load", repo, None, settings, "4" if settings.small else "100", str(source))
    yield table(
        "The same, original and `mopeq_hub.load` in one process, token by token",
        ("experts, times as fast", "whole, times as fast"),
        [(times(turns["experts"]), times(turns["token"]))],
        "Targets: 6x, 2.5x.",
    )
    counted = (
        "tokens",
        *(f"{bits} bits, {how}" for bits in WIDTHS for how in ("packed, fixed", "packed", "bf16", "fp32")),
    )
    yield table("Microseconds of 2048 -> 768 for so many vectors, packed and unpacked", counted, _switching(settings))


def _library(folder: Path) -> Path | None:
    """auto-round's kernels, installed for one rival alone: auto-round takes them wherever it finds them."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), _LIBRARY]
    return folder if subprocess.run(pip, capture_output=True, check=False).returncode == 0 else None


def _answer(how: str, folder: Path, more: Path | None, settings: Settings, *others: str) -> dict[str, float]:
    environment = settings.environment(settings.folder / "home")
    environment["PYTHONPATH"] += f"{os.pathsep}{more}" if more else ""
    arguments = [sys.executable, "-m", "tests.bench.answering", how, str(folder)]
    arguments += others or ("4" if settings.small else "24",)
    run = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr.strip().splitlines()[-1])
    return dict(json.loads(run.stdout.splitlines()[-1]))


def _rows(taken: dict[str, list[dict[str, float]]], sizes: dict[str, int]) -> Iterator[tuple[str, ...]]:
    medians = {
        name: {key: statistics.median(each[key] for each in turns) for key in turns[0]} for name, turns in taken.items()
    }
    first = next(iter(medians.values()))
    for name, each in medians.items():
        ratios = [times(first[key] / each[key]) for key in ("experts", "token", "prefill")]
        yield (
            name, f"{1 / each['experts']:.1f}", f"{1 / each['token']:.1f}", f"{each['prefill']:.2f}",
            f"{each['load']:.1f}", f"{each['memory'] / 1e9:.2f}", times(each["memory"] / sizes[name]), *ratios,
            times(each["load"] / first["load"]),
        )  # fmt: skip


def _switching(settings: Settings) -> Iterator[tuple[str, ...]]:
    tables = [_table(bits, 16) for bits in WIDTHS]
    for count in _COUNTS[: 3 if settings.small else None]:
        row = [str(count)]
        for made in tables:
            # Each time another expert's, so that none lies in a cache.
            places = itertools.cycle(range(made.experts))
            vectors = torch.randn(count, made.columns)
            packed = [partial(_packed, made, vectors, places, fixed) for fixed in (True, False)]
            unpacked = [partial(_unpacked, made, each, places) for each in (vectors.bfloat16(), vectors)]
            row += [f"{1e6 * taken:.0f}" for taken in in_turns(20 * settings.turns, *packed, *unpacked)]
        yield tuple(row)


def _packed(made: Table, vectors: torch.Tensor, places: Iterator[int], fixed: bool) -> None:
    made.multiply(vectors, torch.tensor(runs_of(next(places), 0, len(vectors))), len(vectors), fixed=fixed)


def _unpacked(made: Table, vectors: torch.Tensor, places: Iterator[int]) -> None:
    made.product(vectors, next(places))


def _table(bits: int, experts: int) -> Table:
    """Matrices 2048 -> 768, more than a cache holds."""
    rows, columns, group = 768, 2048, 64
    generator = np.random.default_rng(bits)
    codes = generator.integers(0, 1 << bits, (rows, columns), np.uint8)
    scales = np.full((rows, columns // group), 0.01, np.float16)
    zeros = np.full(scales.shape, (1 << (bits - 1)) - 1, np.uint8)
    packed = pack(codes, scales, zeros, bits)
    return Table([[_copied(packed)] for _ in range(experts)], rows, columns)


def _copied(packed: Packed) -> PackedMatrix:
    qweight, qzeros, scales = (torch.from_numpy(value).clone() for value in packed.tensors().values())
    return PackedMatrix(qweight, qzeros, scales, None, 1)
