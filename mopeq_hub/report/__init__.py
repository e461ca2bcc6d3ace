"""What people read of a publication: its card, its plots, the lines on a terminal and on a workflow run's page.

This file holds what those four share, so that one number or one name reads the same everywhere: figures as text, names
that cannot become markup, and the choices that are set side by side. All of them take mopeq.json (`manifest`) and
fidelity.json as plain dicts, so that a report can be made again from the two files alone.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mopeq_hub.families import SEEING
from mopeq_hub.recipe import Recipe

PROJECTIONS = ("gate", "up", "down")
Widths = int | dict[str, int]
"""Of one expert in a manifest: one width, or one by projection where they differ."""
UNIFORM_4 = "uniform 4 bits"
"""The name of the baseline, here and in fidelity.json's comparisons."""

_MARKUP = re.compile(r"[\\`*_\[\]<>#|~$&:@]|(?<=www)\.", re.IGNORECASE)
"""Every character that can begin markup in the middle of a line, a link that needs no markup, or a mention."""

_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ADDRESS = re.compile(r"https://[A-Za-z0-9._~/?#&=%+@-]+")
_HUB_ACCOUNT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Choice:
    """One way to store the model, and how close it stays to the original; None where nobody measured it.

    bytes: all tensors. bpw: bits per weight of the routed experts, scales and zero points included. kl: mean, in nats.
    """

    name: str
    bytes: int
    bpw: float | None = None
    kl: float | None = None
    top1: float | None = None
    perplexity_ratio: float | None = None
    accuracy: float | None = None


def choices(manifest: dict[str, Any], fidelity: dict[str, Any] | None, this: str = "this publication") -> list[Choice]:
    """The original, what it is compared with, the largest first, and last what the manifest describes, named `this`."""
    compared = [_measured(other) for other in (fidelity or {}).get("comparisons", [])]
    if counts(manifest).keys() != {4} and UNIFORM_4 not in [choice.name for choice in compared]:
        compared.append(uniform(manifest, 4))
    compared.sort(key=lambda choice: -choice.bytes)
    return [_original(manifest, fidelity), *compared, _published(manifest, fidelity, this)]


def variants(fidelity: dict[str, Any] | None) -> list[Choice]:
    """The variants of a repo with several budgets, the smallest first, each named by its branch; on main alone."""
    return [_measured(each) for each in (fidelity or {}).get("variants", [])]


def this_variant(fidelity: dict[str, Any] | None) -> str | None:
    """Which of them the document itself is of: the one that is recommended; None where there are none."""
    if fidelity is None:
        return None
    named = {each["publication"]: str(each["name"]) for each in fidelity.get("variants", [])}
    return named.get(fidelity["publication"])


def side_by_side(manifest: dict[str, Any], fidelity: dict[str, Any] | None) -> list[Choice]:
    """The choices, and on main of a repo with several budgets the other variants too; last the publication itself."""
    this = this_variant(fidelity)
    if this is None:
        return choices(manifest, fidelity)
    *others, ours = choices(manifest, fidelity, f"{this}, recommended")
    return [*others, *(each for each in variants(fidelity) if each.name != this), ours]


def _measured(other: dict[str, Any]) -> Choice:
    """One of fidelity.json's comparisons or variants."""
    return Choice(
        other["name"],
        other["bytes"],
        other["experts_bpw"],
        other["kl"]["mean"],
        other["top1_agreement"],
        other["perplexity_ratio"],
        other["accuracy"],
    )


def uniform(manifest: dict[str, Any], bits: int) -> Choice:
    """The same model with every expert at `bits` bits; unmeasured.

    A group of g weights takes g codes and a zero point of `bits` bits and one fp16 scale, so sizes are linear in bits.
    """
    group = Recipe.from_dict(manifest["recipe"]).group_size
    sizes = manifest["sizes"]
    wider = sizes["expert_weights"] * (bits - 4) * (group + 1) // (group * 8)
    return Choice(f"uniform {bits} bits", sizes["uniform_4bit_bytes"] + wider, bits + (16 + bits) / group)


def _original(manifest: dict[str, Any], fidelity: dict[str, Any] | None) -> Choice:
    """The source, whose distance to itself needs no measuring."""
    stored = manifest["sizes"]["source_bytes"]
    if fidelity is None:
        return Choice("original", stored)
    return Choice("original", stored, None, 0.0, 1.0, 1.0, (fidelity["accuracy"] or {}).get("original"))


def _published(manifest: dict[str, Any], fidelity: dict[str, Any] | None, name: str) -> Choice:
    stored, bpw = manifest["sizes"]["published_bytes"], manifest["sizes"]["experts_bpw"]
    if fidelity is None:
        return Choice(name, stored, bpw)
    return Choice(
        name,
        stored,
        bpw,
        fidelity["kl"]["mean"],
        fidelity["top1_agreement"],
        fidelity["perplexity"]["ratio"],
        (fidelity["accuracy"] or {}).get("published"),
    )


def by_projection(manifest: dict[str, Any]) -> bool:
    """Whether some expert's projections differ in width, so that projections are what is counted."""
    return any(not isinstance(widths, int) for layer in manifest["experts"] for widths in layer["bits"])


def projections(manifest: dict[str, Any]) -> tuple[str, ...]:
    """The names of an expert's projections, in their order: gate, up and down, unless the manifest says others."""
    return tuple(manifest["model"].get("projections", PROJECTIONS))


def split(widths: Widths, names: Sequence[str] = PROJECTIONS) -> tuple[int, ...]:
    """An expert's widths, of each of its projections."""
    return (widths,) * len(names) if isinstance(widths, int) else tuple(widths[name] for name in names)


def widths_in(manifest: dict[str, Any], layer: dict[str, Any]) -> list[int]:
    """The widths of a layer's experts, or of their projections where those are counted."""
    names = projections(manifest)
    if not by_projection(manifest):
        return list(layer["bits"])
    return [width for each in layer["bits"] for width in split(each, names)]


def takes_pictures(manifest: dict[str, Any]) -> bool:
    """Whether the model is asked about pictures."""
    return manifest["model"]["task"] in SEEING


def has_encoder(manifest: dict[str, Any]) -> bool:
    """Whether an encoder reads what the model is asked."""
    return bool(manifest["model"]["task"] == "text2text-generation")


def brings_code(manifest: dict[str, Any]) -> bool:
    """Whether the publication holds the code of its model, which transformers does not have, or not so."""
    return any(name.endswith(".py") for name in manifest["files"])


def code_of_source(manifest: dict[str, Any]) -> tuple[str, ...]:
    """The names of the Python files of the source's that the publication holds and that make its model; none where they
    are this project's, or there are none."""
    return tuple(manifest.get("remote_code", {}).get("files", ()))


def required(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Packages that such code needs beside what everybody has who loads a publication, by the names that pip knows."""
    named = manifest.get("remote_code", {}).get("requires", ())
    return tuple(name for name in named if _PACKAGE.fullmatch(name))


def counts(manifest: dict[str, Any]) -> dict[int, int]:
    """How many experts, or projections of experts, have each width, narrowest first."""
    return dict(sorted(Counter(width for layer in manifest["experts"] for width in widths_in(manifest, layer)).items()))


def counted(manifest: dict[str, Any], count: int) -> str:
    """The word for what `counts` counts, for so many."""
    return ("projection" if by_projection(manifest) else "expert") + ("" if count == 1 else "s")


def size(count: int) -> str:
    """Bytes for people: three digits and a decimal unit, as in 54.0 GB."""
    value, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB", "PB"))
    unit = next(units)
    while value >= 999.5:
        value, unit = value / 1000, next(units)
    return f"{count} bytes" if unit == "bytes" else f"{value:#.3g}".rstrip(".") + f" {unit}"


def number(value: float) -> str:
    """A measured number with three digits."""
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def percent(share: float) -> str:
    """A share of 1 as a percentage that says 100% only where it is all of it."""
    if share == 1:
        return "100%"
    return f"{share:.1%}" if share < 0.9995 else "over 99.9%"


def listed(words: list[str], last: str = "and") -> str:
    """Words as a sentence lists them: `2, 3 and 4`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


class Markdown(str):
    """Text that is markup on purpose. Every other text is a guest's and goes through `escape`."""

    __slots__ = ()


def one_line(text: object) -> str:
    """The text without what could leave its line or steer a terminal: no control characters, no run of spaces."""
    return "".join(character for character in " ".join(str(text).split()) if character.isprintable())


def escape(text: object) -> Markdown:
    """The text as text, in Markdown and in HTML: a character reference is never read as markup."""
    return Markdown(_MARKUP.sub(lambda found: f"&#{ord(found[0])};", one_line(text)))


def code(text: object) -> Markdown:
    """The text as a code span, fenced with more backticks than it holds in a row. In a table a bar would split it."""
    content = one_line(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", content)), default=0))
    space = " " if content.startswith("`") or content.endswith("`") else ""
    return Markdown(f"{fence}{space}{content}{space}{fence}")


def link(label: Markdown, address: str | None) -> Markdown:
    """A link, where the address is a plain https one; else only the label."""
    return Markdown(f"[{label}]({address})") if address and _ADDRESS.fullmatch(address) else label


def hub_address(name: str | None, kind: str = "") -> str | None:
    """The page of owner/name on the Hub (`kind` is "spaces/" for a Space), or None where the name cannot be one."""
    return f"https://huggingface.co/{kind}{name}" if name and _HUB_NAME.fullmatch(name) else None


def account_address(name: str) -> str | None:
    """The page of an account on the Hub, or None where the name cannot be one."""
    return f"https://huggingface.co/{name}" if _HUB_ACCOUNT.fullmatch(name) else None


def moment(when: str) -> str:
    """A time of the manifest's as people write it."""
    return when.replace("T", " ").replace("Z", " UTC")


def table_rows(rows: list[Choice]) -> Iterator[tuple[str, ...]]:
    """Each choice as cells: name, size, bpw, KL, top-1, perplexity ratio, accuracy; `not measured` where it was not."""
    for row in rows:
        measured = (
            (row.kl, number),
            (row.top1, percent),
            (row.perplexity_ratio, number),
            (row.accuracy, percent),
        )
        cells = ("not measured" if value is None else text(value) for value, text in measured)
        yield (row.name, size(row.bytes), "–" if row.bpw is None else f"{row.bpw:.2f}", *cells)
