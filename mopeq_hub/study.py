"""`study`: signals x allocators x budgets on one model, each measured, with the damage that they try to foresee.

The study of MoPEQ (arXiv 2509.02512) for any model that memory holds: which signal to trust. Bit maps are tried on the
original in memory (`mopeq_hub.fidelity.trials`); the rest of the model stays at 16 bits unless the recipe says
otherwise, so that only the experts are compared. The ground truth is what quantizing one expert alone does to the
answers, the KL divergence at each width. Given to the knapsack it is the bound that signals are held against, though
not a strict one: the damages of several experts do not quite add up.
"""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mopeq_hub import workplace
from mopeq_hub.allocation import ALLOCATORS, Room, allocate
from mopeq_hub.benchmarks import Benchmarks
from mopeq_hub.benchmarks.trials import answer
from mopeq_hub.bitmap import BitMap, bytes_of
from mopeq_hub.budget import room_for
from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.experts import Expert
from mopeq_hub.fidelity.trials import alone, fits, try_maps, untried, widths_of
from mopeq_hub.model import Model, open_model
from mopeq_hub.profiles import profile_of
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.quantization.calibrated import calibrated
from mopeq_hub.questions import DEFAULT_TOKENS, Questions, read_questions
from mopeq_hub.recipe import CALIBRATED, MEASURED, RUNNING, Recipe
from mopeq_hub.report import study as report
from mopeq_hub.sensitivity import SETTINGS, Profile
from mopeq_hub.sensitivity.agreement import by_layer, costs_at, overall, rank_correlation
from mopeq_hub.sensitivity.by_running import memory_needed
from mopeq_hub.sensitivity.given import Given
from mopeq_hub.sensitivity.initial import pinned
from mopeq_hub.sensitivity.profile import shared_out
from mopeq_hub.version import __version__

BUDGETS = ("2.5bpw", "3.0bpw", "3.5bpw")
SHUFFLES = 10
"""Random bit maps of which a mean is taken."""
TRUTH_SECONDS = 1800
"""What the ground truth may take unless it is asked for."""
NOTES = "trials.jsonl"
"""In the study's folder: what each bit map gave, for the next run."""
TRUTH = "ground truth"
Rooms = Mapping[str, Room]
"""What each budget leaves to the experts."""


@dataclass(frozen=True)
class Entry:
    """One line of a study: bit maps made in one way, over which its figures are averaged.

    method: as people read it. signal, allocator, scope: None where it has none. budget: empty where it kept to none.
    """

    method: str
    bitmaps: tuple[BitMap, ...]
    budget: str = ""
    signal: str | None = None
    allocator: str | None = None
    scope: str | None = None


def study(
    model: str,
    *,
    signals: Sequence[str] = (),
    allocators: Sequence[str] = (),
    budgets: Sequence[str] = BUDGETS,
    recipe: Recipe | None = None,
    questions: str | Path | None = None,
    calibration: str | Path | None = None,
    initial: str | None = None,
    fidelity_tokens: int = DEFAULT_TOKENS,
    out: str | Path | None = None,
    truth: bool | None = None,
    accuracy: bool = False,
    benchmarks: Benchmarks | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run a study, leave study.json, study.md and plots in `out`, and return what study.json says.

    model: a folder, or owner/name[@revision]. signals: of `known_signals()`, where `fisher` stands for `fisher:own` and
    `fisher:calibration`; allocators: of those that measure nothing; all where none is named. recipe: widths, group
    size, symmetry, `search` or `rtn`, seed, granularity of what keeps to a budget (the bound goes by expert), and the
    `rest_bits` of what is no expert; None for the defaults with the rest at 16 bits. questions: what is measured on;
    calibration: what signals may look at; None for the bundled ones. initial: an earlier checkpoint for `router`. out:
    None is ./studies/{name}; what was measured there before is not measured again. truth: whether to measure the ground
    truth; None does so where it takes at most `TRUTH_SECONDS`.
    accuracy: let each bit map answer the questions. benchmarks: what each but the random ones is to answer.
    trust_remote_code: as in `publish`.
    Raises MopeqError where memory does not hold the model, or a budget cannot be met.
    """
    progress, base = progress or Quiet(), _base(recipe)
    asked = read_questions(questions, fidelity_tokens)
    if accuracy and not asked.scored:
        raise UsageError("the bundled questions have no answers that count", "name a file with --questions")
    names = _chosen("signal", signals, known_signals())
    kinds = _chosen("allocator", allocators, [name for name in ALLOCATORS if name != MEASURED])
    opened = open_model(model, trust_remote_code=trust_remote_code)
    rooms = {budget: _room(opened, base, budget) for budget in dict.fromkeys(budgets)}
    _check_memory(opened, base)
    folder = _folder(opened, out)
    tuned = read_questions(calibration)
    given = Given(Path(calibration) if calibration else None, initial)
    profiles, left_out = _profiles(opened, base, names, given, progress)
    bench = _Bench(opened, base, asked, folder / NOTES, progress)
    entries = [
        *_uniform(opened, base, rooms),
        *_random(opened, base, rooms),
        *_by_signals(profiles, kinds, base, rooms),
    ]
    rows = bench.rows(entries, accuracy)
    known, why_not = _truth(bench, truth)
    if known is not None:
        by_expert = replace(base, granularity="expert")
        entries += list(_within(TRUTH, known, "knapsack", by_expert, rooms))
        rows += bench.rows(entries[len(rows) :], accuracy)
    answered = bench.answered(entries, benchmarks) if benchmarks else None
    document = {
        "format": 1,
        "version": __version__,
        "source": {"kind": opened.source.kind, "name": opened.source.name, "commit": opened.source.commit},
        "model": {"layers": opened.layout.layer_count, "experts": len(opened.layout.experts)},
        "questions": {"name": asked.name, "sha256": asked.digest, "limit": asked.limit},
        "calibration": {"name": tuned.name, "sha256": tuned.digest, "as_measured_on": tuned.digest == asked.digest},
        "settings": _settings(base),
        "budgets": list(rooms),
        "original": bench.original(accuracy),
        "rows": [{**row, "of_uniform": share} for row, share in zip(rows, _of_uniform(rows), strict=True)],
        "signals": [
            {"name": name, "signal": profile.signal, "layers": by_layer(profile, overall(profile, base.bits))}
            for name, profile in profiles.items()
        ],
        "left_out": [{"name": name, "reason": reason} for name, reason in left_out.items()],
        "truth": _described(known, base.bits) if known is not None else None,
        "truth_left_out": why_not,
        "correlations": _correlations(profiles, known, base.bits) if known is not None else [],
        "benchmarks": answered,
    }
    (folder / "study.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    report.write(document, folder)
    return document


def known_signals() -> list[str]:
    """Every signal there is; those that run the model once on their own inputs and once on calibration questions."""
    return [
        name if inputs is None else f"{name}:{inputs}"
        for name in SETTINGS
        for inputs in (("own", "calibration") if name in RUNNING else (None,))
    ]


def _base(recipe: Recipe | None) -> Recipe:
    """The choices that all bit maps have in common."""
    base = recipe or Recipe(rest_bits=16)
    if base.quantizer in CALIBRATED:
        raise UsageError("a study tries bit maps without calibrated quantizers", "use --quantizer search or rtn")
    if base.rest_bits == "auto":
        raise UsageError("a study compares the experts alone", "use --rest-bits 16, or one width for the rest")
    return replace(base, signal="hessian", initial="", allocator="kmeans", budget="")


def _chosen(kind: str, asked: Sequence[str], known: Sequence[str]) -> list[str]:
    """Those asked for, in the order of the known; `name` is also all of `name:...`. All where none is asked for."""
    for name in asked:
        if not any(name in (each, each.partition(":")[0]) for each in known):
            raise UsageError(f"there is no {kind} {name!r}", f"choose from {', '.join(known)}")
    return [each for each in known if not asked or {each, each.partition(":")[0]} & set(asked)]


def _room(model: Model, base: Recipe, budget: str) -> Room:
    room = room_for(model, replace(base, allocator="knapsack", budget=budget))
    assert room is not None
    return room


def _check_memory(model: Model, base: Recipe) -> None:
    if not fits(model, base):
        needed, free = memory_needed(model, base.bits), workplace.free_memory()
        raise MopeqError(
            f"a study tries bit maps in memory: {free / 1e9:.1f} GB of it are free, {model.source.name} takes "
            f"{math.ceil(needed / 1e9)} GB",
            "use a machine with more memory, or study a smaller model of its family",
        )


def _folder(model: Model, out: str | Path | None) -> Path:
    """Where the study goes, made now. Raises MopeqError where that is inside the model, which it would change."""
    folder = Path(out) if out else Path("studies") / model.source.name.rpartition("/")[2]
    if model.source.kind == "folder" and folder.resolve().is_relative_to(model.source.location):
        raise MopeqError(f"{folder} lies within the model that is studied", "choose another folder with --out")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _profiles(
    model: Model, base: Recipe, names: Sequence[str], given: Given, progress: Progress
) -> tuple[dict[str, Profile], dict[str, str]]:
    """The profile by each signal, and why there is none of the others."""
    profiles: dict[str, Profile] = {}
    left_out: dict[str, str] = {}
    for name in names:
        signal, _, inputs = name.partition(":")
        options: dict[str, Any] = {"inputs": inputs} if inputs else {}
        if signal == "router":
            options["initial"] = given.initial or ""
        file = given.calibration if inputs == "calibration" else None
        try:
            recipe, initial = pinned(calibrated(replace(base, signal=signal, **options), file))
            profiles[name] = profile_of(model, recipe, progress, given=Given(file, initial))
        except MopeqError as error:
            left_out[name] = str(error)
            progress.say(f"without the signal {name}: {error}")
    return profiles, left_out


def _uniform(model: Model, base: Recipe, rooms: Rooms) -> Iterator[Entry]:
    """Each width for all experts, and under each budget the widest that it holds."""
    maps = {bits: BitMap.uniform(model.layout, bits) for bits in base.bits}
    for bits, bitmap in maps.items():
        yield Entry(f"uniform {bits} bits", (bitmap,), allocator="uniform")
    for budget, room in rooms.items():
        bits = max(bits for bits in base.bits if bytes_of(model.layout.routed, maps[bits], base) <= room.capacity)
        yield Entry(f"uniform {bits} bits", (maps[bits],), budget, allocator="uniform")


def _random(model: Model, base: Recipe, rooms: Rooms) -> Iterator[Entry]:
    """Under each budget what the knapsack makes of sensitivities that say nothing."""
    profiles = []
    for seed in range(SHUFFLES):
        drawn = np.random.default_rng([base.seed, seed]).random(len(model.layout.experts))
        numbers = {expert: (float(value),) for expert, value in zip(model.layout.experts, drawn, strict=True)}
        profiles.append(_profile("random", model, numbers, ()))
    for budget, room in rooms.items():
        recipe = replace(base, allocator="knapsack", budget=budget)
        bitmaps = tuple(allocate(profile, recipe, room) for profile in profiles)
        yield Entry("random", bitmaps, budget, "random", "knapsack", base.scope)


def _by_signals(profiles: Mapping[str, Profile], kinds: Sequence[str], base: Recipe, rooms: Rooms) -> Iterator[Entry]:
    """Each signal with each allocator: k-means, which knows no budget, as the paper has it, model- and layer-wise."""
    for name, profile in profiles.items():
        for kind in kinds:
            if kind != "kmeans":
                yield from _within(name, profile, kind, base, rooms)
                continue
            for scope in ("model", "layer"):
                bitmap = allocate(profile, replace(base, granularity="expert", scope=scope))
                yield Entry(f"{name}, k-means {scope}-wise", (bitmap,), "", name, kind, scope)


def _within(name: str, profile: Profile, kind: str, base: Recipe, rooms: Rooms) -> Iterator[Entry]:
    """What an allocator makes of a profile under each budget."""
    for budget, room in rooms.items():
        bitmap = allocate(profile, replace(base, allocator=kind, budget=budget), room)
        yield Entry(f"{name}, {kind}", (bitmap,), budget, name, kind, base.scope)


class _Bench:
    """Bit maps of one model measured on one set of questions, or known from before."""

    def __init__(self, model: Model, base: Recipe, questions: Questions, notes: Path, progress: Progress) -> None:
        self.model, self.base, self.progress = model, base, progress
        self._questions, self._notes = questions, notes
        self._seconds: list[float] = []

    def try_maps(self, maps: Sequence[dict[str, int]], accuracy: bool) -> list[dict[str, Any]]:
        """As `mopeq_hub.fidelity.trials.try_maps`."""
        options: dict[str, Any] = {"accuracy": accuracy, "notes": self._notes}
        return try_maps(self.model, maps, self.base, self._questions, self.progress, **options)

    def rows(self, entries: Iterable[Entry], accuracy: bool) -> list[dict[str, Any]]:
        """Each entry with its figures, the means of its bit maps'."""
        entries = list(entries)
        maps = [widths_of(self.model, bitmap, self.base) for entry in entries for bitmap in entry.bitmaps]
        # The original is asked along with the others, so that no process is started for it alone.
        figures = self.try_maps([{}, *maps], accuracy)[1:]
        self._seconds += [each["seconds"] for each in figures]
        given = iter(figures)
        return [self._row(entry, [next(given) for _ in entry.bitmaps], accuracy) for entry in entries]

    def original(self, accuracy: bool) -> dict[str, Any]:
        """What the original itself gives: answer tokens, their mean loss in nats, and its accuracy."""
        figures = self.try_maps([{}], accuracy)[0]
        return {
            "tokens": figures["tokens"],
            "loss": figures["loss"],
            "accuracy": figures["accuracy"] if accuracy else None,
        }

    def answered(self, entries: Sequence[Entry], asked: Benchmarks) -> dict[str, Any]:
        """What the original answers of benchmarks, and each entry of one bit map."""
        maps = [
            widths_of(self.model, entry.bitmaps[0], self.base) if len(entry.bitmaps) == 1 else None for entry in entries
        ]
        return answer(self.model, maps, self.base, asked, self.progress, self._notes)

    def seconds(self, maps: Sequence[dict[str, int]]) -> float:
        """About how long it takes to try those of these maps that are not known."""
        left = untried(self.model, maps, self.base, self._questions, self._notes)
        return left * statistics.median(self._seconds) if left else 0.0

    def _row(self, entry: Entry, figures: Sequence[dict[str, Any]], accuracy: bool) -> dict[str, Any]:
        mean = {name: statistics.fmean(each[name] for each in figures) for name in figures[0] if name != "key"}
        routed = self.model.layout.routed
        taken = round(statistics.fmean(bytes_of(routed, bitmap, self.base) for bitmap in entry.bitmaps))
        weights = sum(matrix.size for matrix in routed)
        several = len(figures) > 1
        return {
            "method": entry.method,
            "signal": entry.signal,
            "allocator": entry.allocator,
            "scope": entry.scope,
            "budget": entry.budget or None,
            "tries": len(figures),
            "experts_bytes": taken,
            "experts_bpw": 8 * taken / weights,
            "kl": mean["kl_mean"],
            "kl_std": statistics.stdev(each["kl_mean"] for each in figures) if several else None,
            "kl_p99": mean["kl_p99"],
            "top1_agreement": mean["top1_agreement"],
            "perplexity_ratio": math.exp(mean["loss"] - mean["original_loss"]),
            "accuracy": mean["accuracy"] if accuracy else None,
            "layers": None if several else {str(n): widths for n, widths in entry.bitmaps[0].by_layer().items()},
        }


def _of_uniform(rows: Sequence[dict[str, Any]]) -> list[float | None]:
    """Each row's KL as a share of that of uniform widths at its size: on straight lines between the logarithms of
    theirs. None where it is smaller or larger than all of them."""
    points = sorted(
        (row["experts_bytes"], math.log(row["kl"]))
        for row in rows
        if row["allocator"] == "uniform" and not row["budget"] and row["kl"] > 0
    )
    if not points:
        return [None] * len(rows)
    sizes, logarithms = zip(*points, strict=True)
    return [
        row["kl"] / math.exp(float(np.interp(row["experts_bytes"], sizes, logarithms)))
        if sizes[0] <= row["experts_bytes"] <= sizes[-1]
        else None
        for row in rows
    ]


def _truth(bench: _Bench, wanted: bool | None) -> tuple[Profile | None, str | None]:
    """The KL divergence that each expert alone causes at each width, or why it was not measured."""
    model, bits = bench.model, bench.base.bits
    if wanted is False:
        return None, "it was not asked for"
    experts = model.layout.experts
    maps = [alone(matrices, width) for matrices in experts.values() for width in bits]
    takes = bench.seconds(maps)
    if wanted is None and takes > TRUTH_SECONDS:
        why = f"its {len(maps):,} trials take about {_duration(takes)} on this machine; --truth does it all the same"
        bench.progress.say(f"without the ground truth: {why}")
        return None, why
    figures = iter(bench.try_maps(maps, accuracy=False))
    costs = {expert: tuple(float(next(figures)["kl_mean"]) for _ in bits) for expert in experts}
    return _profile(TRUTH, model, costs, bits), None


def _profile(name: str, model: Model, numbers: Mapping[Expert, tuple[float, ...]], bits: tuple[int, ...]) -> Profile:
    """A profile of numbers by expert, shared out to its projections by their weights."""
    experts = {}
    for expert, matrices in model.layout.experts.items():
        shares = shared_out(numbers[expert], matrices)
        experts[expert] = {str(matrix.projection): values for matrix, values in shares.items()}
    return Profile({"name": name}, experts, model.source.commit, bits)


def _correlations(profiles: Mapping[str, Profile], truth: Profile, bits: Sequence[int]) -> list[dict[str, Any]]:
    """Spearman's rank correlation of each signal with the ground truth over all experts: at each width, and overall."""
    return [
        {
            "signal": name,
            "widths": {
                str(width): rank_correlation(costs_at(profile, width), costs_at(truth, width)) for width in bits
            },
            "overall": rank_correlation(overall(profile, bits), overall(truth, bits)),
        }
        for name, profile in profiles.items()
    ]


def _described(truth: Profile, bits: Sequence[int]) -> dict[str, Any]:
    """The ground truth for study.json: the KL divergence (nats) of each expert alone, by width and layer."""
    kl = {str(width): by_layer(truth, costs_at(truth, width)) for width in bits}
    return {"kl": kl, "layers": by_layer(truth, overall(truth, bits))}


def _settings(base: Recipe) -> dict[str, Any]:
    """What all bit maps of a study have in common."""
    names = ("bits", "granularity", "group_size", "symmetric", "quantizer", "rest_bits", "seed")
    return {name: list(base.bits) if name == "bits" else getattr(base, name) for name in names}


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{math.ceil(minutes)} minutes" if minutes < 120 else f"{minutes / 60:.0f} hours"
