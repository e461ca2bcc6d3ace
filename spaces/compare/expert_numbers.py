"""What can be told of one expert: bits, sensitivity, and statistics of its packed weights, projection by projection."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from markup import in_html
from tensors import Tensors, TensorsError

MOST_BARS = 16
"""Code levels that are shown one by one; at 8 bits there are 256."""


PROJECTIONS = {"gate": "{}.gate_proj", "up": "{}.up_proj", "down": "{}.down_proj"}
"""Where each projection of the expert `{}` is in an experts module, unless the manifest says otherwise."""


@dataclass(frozen=True)
class Numbers:
    """Of a projection [rows, columns]: smallest, median and largest size of its scales, which may be negative; share of
    each code level; root mean square and largest size of its weights."""

    name: str
    rows: int
    columns: int
    scales: tuple[float, float, float]
    usage: np.ndarray
    rms: float
    largest: float
    nbytes: int


class Experts:
    """The routed experts of a publication, as its manifest (mopeq.json) and its packed tensors describe them."""

    def __init__(self, manifest: dict[str, Any], tensors: Tensors) -> None:
        self.layers = {layer["layer"]: layer for layer in manifest["experts"]}
        self.projections: dict[str, str] = manifest.get("model", {}).get("projections", PROJECTIONS)
        self.group_size = int(manifest["recipe"]["group_size"])
        self.symmetric = bool(manifest["recipe"]["symmetric"])
        self.rest: dict[str, int] = {name: int(bits) for name, bits in manifest["rest"].get("widths", {}).items()}
        self._tensors = tensors

    def described(self, layer: int, expert: int) -> str:
        """HTML: everything about one expert, as far as its tensors can be read now."""
        entry = self.layers[layer]
        bits, sensitivity = entry["bits"][expert], entry["sensitivity"][expert]
        others = [value for row in self.layers.values() for value in row["sensitivity"]]
        below = sum(value < sensitivity for value in others)
        try:
            numbers = self.numbers(layer, expert)
            weights = _table(numbers) + _levels(numbers)
        except Exception as error:
            print(f"layer {layer}, expert {expert}: {error!r}", file=sys.stderr, flush=True)
            why = error if isinstance(error, TensorsError) else type(error).__name__
            weights = f"<p>{in_html(f'Its packed weights cannot be read now: {why}.')}</p>"
        return (
            f"<h3>Layer {layer}, expert {expert}</h3><p>{_widths(bits)} per weight, sensitivity "
            f"<b>{sensitivity:.6g}</b>: more sensitive than {below} of {len(others)} experts.</p>{weights}"
        )

    def numbers(self, layer: int, expert: int) -> list[Numbers]:
        """Statistics of each projection. Raises TensorsError where its tensors cannot be read."""
        entry, within = self.layers[layer], self.projections.values()
        (home,) = {path.partition("{}")[0] for path in within}
        found = self._tensors.under(f"{entry['module']}.{home}{expert}.")
        names = [path.partition("{}.")[2] for path in within]
        return [
            self._numbers(name, {part: found[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")})
            for name in names
            if f"{name}.qweight" in found
        ]

    def _numbers(self, name: str, packed: dict[str, np.ndarray]) -> Numbers:
        scales = packed["scales"].astype(np.float32)
        groups, rows = scales.shape
        columns = groups * self.group_size
        bits = packed["qweight"].shape[0] * 32 // columns
        codes = unpacked(np.ascontiguousarray(packed["qweight"].T), bits).reshape(rows, groups, self.group_size)
        # The symmetric layout stores zero points minus one.
        zeros = unpacked(packed["qzeros"], bits).T.astype(np.float32) + int(self.symmetric)
        weight = (codes - zeros[..., None]) * scales.T[..., None]
        sizes = np.abs(scales)
        return Numbers(
            name=name,
            rows=rows,
            columns=columns,
            scales=(float(sizes.min()), float(np.median(sizes)), float(sizes.max())),
            usage=np.bincount(codes.reshape(-1), minlength=1 << bits) / codes.size,
            rms=float(np.sqrt(np.mean(np.square(weight, dtype=np.float64)))),
            largest=float(np.abs(weight).max()),
            nbytes=sum(part.nbytes for part in packed.values()),
        )


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [n, m] of int32 [n, m * bits / 32], in which values lie as a little-endian stream of fields of `bits`."""
    stream = np.unpackbits(words.astype("<i4").view(np.uint8), axis=1, bitorder="little")
    return np.packbits(stream.reshape(len(words), -1, bits), axis=-1, bitorder="little")[..., 0]


def _widths(bits: int | dict[str, int]) -> str:
    """An expert's widths: one, or one by projection."""
    if isinstance(bits, int):
        return f"<b>{bits} bits</b>"
    return ", ".join(f"{in_html(name)} <b>{width} bits</b>" for name, width in bits.items())


def _table(numbers: list[Numbers]) -> str:
    rows = {
        "Weights": [f"{each.rows} × {each.columns}" for each in numbers],
        "Packed": [f"{each.nbytes / 1000:,.1f} kB" for each in numbers],
        "Scales, smallest": [f"{each.scales[0]:.4g}" for each in numbers],
        "Scales, median": [f"{each.scales[1]:.4g}" for each in numbers],
        "Scales, largest": [f"{each.scales[2]:.4g}" for each in numbers],
        "RMS weight": [f"{each.rms:.4g}" for each in numbers],
        "Largest weight": [f"{each.largest:.4g}" for each in numbers],
    }
    body = "".join(
        f"<tr><th scope=row>{title}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        for title, cells in rows.items()
    )
    return f'<div class="scroll"><table><tr><th></th>{_heads(numbers)}</tr>{body}</table></div>'


def _levels(numbers: list[Numbers]) -> str:
    """Use of each code level as bars; of a projection with many levels, how many are used at all."""
    few = [each for each in numbers if each.usage.size <= MOST_BARS]
    many = [each for each in numbers if each.usage.size > MOST_BARS]
    rows = "".join(
        f"<tr><th scope=row>{code}</th>"
        + "".join(_bar(each.usage[code]) if code < each.usage.size else "<td></td>" for each in few)
        + "</tr>"
        for code in range(max((each.usage.size for each in few), default=0))
    )
    told = (
        "<p>Use of each code level, of all weights:</p>"
        f'<div class="scroll"><table class="levels"><tr><th>code</th>{_heads(few)}</tr>{rows}</table></div>'
    )
    used = ", ".join(f"{in_html(each.name)} {int((each.usage > 0).sum())}" for each in many)
    levels = ", ".join(sorted({str(each.usage.size) for each in many}))
    return (told if few else "") + (f"<p>Code levels that are used, of {levels}: {used}.</p>" if many else "")


def _heads(numbers: list[Numbers]) -> str:
    return "".join(f"<th scope=col>{in_html(each.name.removesuffix('_proj'))}</th>" for each in numbers)


def _bar(share: float) -> str:
    return f'<td><i style="width:{share:.1%}"></i><span>{share:.1%}</span></td>'
