"""Recipe: every choice a user can make about a publication, validated once, with a digest that names it."""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from mopeq_hub.errors import UsageError

FORMAT_VERSION = 2
"""Version of what is written: raised whenever the same recipe would give other bytes."""

WIDTHS = (2, 3, 4, 8)
GROUP_SIZES = (32, 64, 128, 256)

BEST, MEASURED = "best", "measured"
"""The signal that is chosen by what a machine can do, and the allocator that tries maps."""

_CHOICES: dict[str, tuple[Any, ...]] = {
    "signal": ("hessian", "distortion", "router", "frequency", "hessian*frequency", "fisher", BEST),
    "inputs": ("own", "calibration"),
    "estimator": ("exact", "hutchinson"),
    "allocator": ("kmeans", "rank", "knapsack", MEASURED),
    "scope": ("model", "layer"),
    "granularity": ("expert", "projection", "layer"),
    "quantizer": ("search", "rtn", "signround", "gptq"),
    "group_size": GROUP_SIZES,
    "rest_bits": (2, 3, 4, 8, 16, "auto"),
}
REST_SIGNALS = ("hessian", "fisher", BEST)
"""Signals that also measure the linear layers outside the experts, where the recipe asks for it."""

_BUDGET = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(bpw|MB|GB|x)")

CALIBRATED = ("signround", "gptq")
"""Quantizers that look at what the model computes on calibration data."""

RUNNING = ("frequency", "hessian*frequency", "fisher")
"""Signals that run the model."""


@dataclass(frozen=True)
class Recipe:
    """All choices of one publication. Two runs of one recipe on one source commit give the same bytes.

    bits: the widths experts may get, in bits per weight; a single width is the uniform baseline.
    signal: how sensitivity is measured: `hessian`, the paper's; `distortion`, what quantizing does to what the experts
    give for inputs that are drawn; `router`, by how the router changed in training; those that run the model; `best` is
    what was found best of what this machine can measure.
    inputs: what a signal that runs the model runs it on: its `own` inputs, made without any data, or the `calibration`
    questions and as many recombined from them. estimator, probes: of `hessian`; `probes` counts only for `hutchinson`.
    initial: of `router`, an earlier checkpoint: a folder or owner/name[@revision], of which the pipeline makes
    name@commit; empty for a stand-in.
    allocator, scope: how sensitivities become widths; `model` lets experts of all layers compete. `kmeans` is the
    paper's, `rank` cuts the order of the sensitivities into parts, `knapsack` loses least, `measured` tries knapsacks
    and uniform widths on the questions of the proof and takes what is best; all but the first meet a budget.
    granularity: what one width covers: an `expert`, a `projection`, or all experts of a `layer`, which is what engines
    that know one width a layer need.
    budget: what the published model may take: `3.0bpw` of the routed experts, `12GB`, `500MB` or `0.25x` of all
    safetensors files; scales and zero points count. Empty for `kmeans`, which knows none.
    quantizer: `search` looks for the scale with the least squared error in each group, `rtn` rounds to nearest,
    `signround` tunes scales and roundings on calibration data (arXiv 2309.05516), `gptq` lets the weights of later
    columns make up for the rounding of earlier ones, on calibration data too (arXiv 2210.17323).
    iterations: how often `signround` adjusts each decoder layer. calibration: the digest of the calibration questions,
    which the pipeline fills in. questions: of those that `measured` tries maps on, likewise. Choices that nothing else
    in the recipe has a use for stay at their defaults.
    group_size: consecutive input weights that share a scale.
    symmetric: True centres the grid on zero; False stores a zero point for each group.
    rest_bits: width of every other linear layer of the text model; 16 leaves them as they are. `auto` gives each its
    own, one of `bits`, 8 or 16: they compete with the experts in one knapsack, for a budget of all files.
    shard_size: bytes at which a new output file is begun.
    seed: of everything random (k-means starts, probes).
    """

    bits: tuple[int, ...] = (2, 3, 4)
    signal: str = "hessian"
    inputs: Literal["own", "calibration"] = "own"
    estimator: Literal["exact", "hutchinson"] = "exact"
    probes: int = 32
    initial: str = ""
    allocator: str = "kmeans"
    budget: str = ""
    scope: Literal["model", "layer"] = "model"
    granularity: Literal["expert", "projection", "layer"] = "expert"
    quantizer: Literal["search", "rtn", "signround", "gptq"] = "search"
    iterations: int = 100
    calibration: str = ""
    questions: str = ""
    group_size: int = 64
    symmetric: bool = True
    rest_bits: int | Literal["auto"] = 4
    shard_size: int = 2_000_000_000
    seed: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = type(field.default)
            value = getattr(self, field.name)
            if field.name == "rest_bits" and type(value) is str:
                continue
            if field.name != "bits" and type(value) is not kind:
                raise UsageError(f"{field.name} {value!r} is not of the type {kind.__name__}")
        if not isinstance(self.bits, tuple) or any(type(width) is not int for width in self.bits):
            raise UsageError(f"bits {_listed(self.bits)} are not whole numbers", "write them as 2,3,4")
        widths = tuple(sorted(set(self.bits)))
        object.__setattr__(self, "bits", widths)
        if not widths or any(width not in WIDTHS for width in widths):
            raise UsageError(f"bits {_listed(self.bits)} are not among {_listed(WIDTHS)}", "for example --bits 2,3,4")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} {getattr(self, name)!r} does not exist", f"choose from {_listed(allowed)}")
        if self.initial and self.signal != "router":
            raise UsageError(f"--signal {self.signal} needs no --initial", "add --signal router, or leave it out")
        for name in self._unused():
            object.__setattr__(self, name, getattr(type(self), name))
        for name in ("calibration", "questions"):
            if not re.fullmatch("([0-9a-f]{64})?", getattr(self, name)):
                raise UsageError(f"{name} {getattr(self, name)!r} is not a digest", f"name the file with --{name}")
        for name in ("probes", "iterations", "shard_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} is not positive", "give 1 or more")
        if self.budget and not _BUDGET.fullmatch(self.budget):
            raise UsageError(f"--budget {self.budget!r} is not a size", "write it as 3.0bpw, 12GB, 500MB or 0.25x")
        if self.budget and self.allocator == "kmeans":
            raise UsageError("the allocator kmeans knows no --budget", "add --allocator knapsack")
        if not self.budget and self.allocator != "kmeans":
            raise UsageError(f"the allocator {self.allocator} needs a --budget", "such as --budget 3.0bpw")
        if self.granularity == "layer" and self.scope == "layer":
            raise UsageError(
                "--granularity layer gives a layer one width, so within --scope layer there is nothing to choose",
                "leave out --scope layer",
            )
        if self.rest_bits == "auto":
            self._check_rest()
        if not 0 <= self.seed < 1 << 32:
            raise UsageError(f"--seed {self.seed} is out of range", "give 0 to 4294967295")

    def _check_rest(self) -> None:
        """Raises UsageError where the rest cannot compete with the experts."""
        if self.allocator not in ("knapsack", MEASURED) or self.budget_parts[1] == "bpw":
            raise UsageError(
                "--rest-bits auto needs an allocator that spends a budget, and a --budget of all files, in GB, MB or x",
                "such as --budget 0.25x; bpw counts the experts alone",
            )
        if self.scope == "layer":
            raise UsageError(
                "--rest-bits auto lets all layers of the model compete, which --scope layer does not",
                "leave out --scope layer",
            )
        if self.signal not in REST_SIGNALS:
            raise UsageError(
                f"the signal {self.signal} does not measure what --rest-bits auto needs, layers outside the experts",
                f"choose --signal {' or '.join(REST_SIGNALS[:-1])}",
            )

    def uniform(self, bits: int) -> "Recipe":
        """The same with one width for every expert, and so without a budget; by the signal that takes least, and
        with one width for the rest."""
        rest = self._one_for_the_rest
        return replace(self, bits=(bits,), allocator="kmeans", budget="", signal="hessian", initial="", rest_bits=rest)

    @property
    def widths(self) -> tuple[int, ...]:
        """All widths that compete: those of the experts, and where the rest competes with them its own beside them."""
        return tuple(sorted({*self.bits, 8, 16})) if self.rest_bits == "auto" else self.bits

    @property
    def packed_widths(self) -> tuple[int, ...]:
        """Those at which something may be packed: what a signal that gives costs has to give them for."""
        return tuple(bits for bits in self.widths if bits != 16)

    def paper(self) -> "Recipe":
        """The same with the map of the paper: model-wise k-means of the exact Hessian trace, expert by expert."""
        names = ("signal", "inputs", "initial", "estimator", "allocator", "scope", "granularity", "budget", "questions")
        return replace(self, rest_bits=self._one_for_the_rest, **{name: getattr(Recipe, name) for name in names})

    @property
    def budget_parts(self) -> tuple[float, str]:
        """Amount and unit, `bpw`, `MB`, `GB` or `x`, of a budget that is not empty."""
        amount, unit = _BUDGET.fullmatch(self.budget).groups()  # type: ignore[union-attr]
        return float(amount), unit

    @property
    def _one_for_the_rest(self) -> int | Literal["auto"]:
        """One width for all of the rest, where nothing competes."""
        return Recipe.rest_bits if self.rest_bits == "auto" else self.rest_bits

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the choices and the format's version."""
        text = json.dumps({"format": FORMAT_VERSION, **self.to_dict()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def packing_format(self) -> str:
        """auto-round's name for the layout; the first stores zero points minus one and so cannot hold a zero point of
        0."""
        return "auto_round:auto_gptq" if self.symmetric else "auto_round"

    def to_dict(self) -> dict[str, Any]:
        """The choices as JSON types, without those that the quantizer has no use for."""
        choices = {**asdict(self), "bits": list(self.bits)}
        return {name: value for name, value in choices.items() if name not in self._unused()}

    def _unused(self) -> tuple[str, ...]:
        """Choices that only other signals, quantizers or allocators know; they are not named, so that they change no
        digest."""
        runs, tunes, traces = self.signal in (*RUNNING, BEST), self.quantizer in CALIBRATED, "hessian" in self.signal
        used = {
            "budget": bool(self.budget),
            "inputs": runs,
            "estimator": traces,
            "probes": traces,
            "initial": bool(self.initial),
            "iterations": self.quantizer == "signround",
            "questions": self.allocator == MEASURED,
            "calibration": tunes or (runs and self.inputs == "calibration"),
        }
        return tuple(name for name, use in used.items() if not use)

    @classmethod
    def from_dict(cls, choices: dict[str, Any]) -> "Recipe":
        """The recipe of `choices`, which may leave any out; with a budget the allocator is then one that meets it.

        Raises UsageError on an unknown choice.
        """
        unknown = sorted(set(choices) - {field.name for field in fields(cls)})
        if unknown:
            raise UsageError(f"a recipe has no {_listed(unknown)}", "see `mopeq-hub publish --help` for the choices")
        if choices.get("budget"):
            choices = {"allocator": "knapsack", **choices}
        return cls(**{**choices, **({"bits": tuple(choices["bits"])} if "bits" in choices else {})})


def _listed(values: Any) -> str:
    if not isinstance(values, (tuple, list)):
        return repr(values)
    return ", ".join(str(value) for value in values)
