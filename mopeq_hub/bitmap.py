"""BitMap: what gets how many bits, and its form in a `quantization_config`."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mopeq_hub.experts import PACK_MULTIPLE, Expert, Layout, Matrix
from mopeq_hub.families.base import PROJECTIONS
from mopeq_hub.recipe import Recipe

UNQUANTIZED = {"bits": 16, "data_type": "float"}
_ANY_BITS = 4
"""auto-round's default width; every module is named with a width of its own, so it decides nothing."""


Widths = int | dict[str, int]
"""Of one expert as documents have them: one width, or one by projection where they differ."""


@dataclass(frozen=True)
class BitMap:
    """Bits per weight of every projection of every routed expert of a model.

    rest: by name those of the linear layers outside the experts that compete with them, 16 where one stays as it is;
    empty where the recipe has one width for all of these.
    """

    bits: Mapping[tuple[Expert, str], int]
    rest: Mapping[str, int] = field(default_factory=dict)

    def by_layer(self) -> dict[int, list[Widths]]:
        """The widths of each layer's experts, in the experts' order."""
        experts: dict[Expert, dict[str, int]] = {}
        for (expert, projection), bits in self.bits.items():
            experts.setdefault(expert, {})[projection] = bits
        layers: dict[int, list[Widths]] = {}
        for expert in sorted(experts):
            widths = {name: experts[expert][name] for name in sorted(experts[expert], key=PROJECTIONS.index)}
            alike = len(set(widths.values())) == 1
            layers.setdefault(expert.layer, []).append(next(iter(widths.values())) if alike else widths)
        return layers

    @classmethod
    def of(cls, layout: Layout, width: Callable[[Expert], Widths]) -> "BitMap":
        """The map that gives each expert of a model these widths."""
        bits = {}
        for expert, matrices in layout.experts.items():
            widths = width(expert)
            for matrix in matrices:
                name = str(matrix.projection)
                bits[expert, name] = widths if isinstance(widths, int) else widths[name]
        return cls(bits)

    @classmethod
    def uniform(cls, layout: Layout, bits: int) -> "BitMap":
        return cls(dict.fromkeys(layout.projections, bits))


def by_projection(widths: Widths, projections: Iterable[str] = PROJECTIONS) -> dict[str, int]:
    """The width of each projection of an expert; `projections` are those it has."""
    return dict.fromkeys(projections, widths) if isinstance(widths, int) else widths


def width_of(matrix: Matrix, bitmap: BitMap, recipe: Recipe) -> int:
    """Bits per weight of a matrix; 16 means that it stays as it is.

    A linear layer outside the experts whose shape does not divide into groups and words stays as it is; an expert's
    shape was checked before (`mopeq_hub.quantization.stream`).
    """
    if matrix.expert is not None:
        return bitmap.bits[matrix.expert, str(matrix.projection)]
    if recipe.rest_bits == "auto":
        return bitmap.rest.get(matrix.name, 16)
    return recipe.rest_bits if divides(matrix.shape, recipe.group_size) else 16


def competing(layout: Layout, recipe: Recipe) -> list[Matrix]:
    """The linear layers outside the experts whose widths the allocator chooses."""
    if recipe.rest_bits != "auto":
        return []
    return [matrix for matrix in layout.rest if divides(matrix.shape, recipe.group_size)]


def divides(shape: tuple[int, int], group_size: int) -> bool:
    """Whether a weight [out, in] divides into groups along its rows and into whole packed words both ways."""
    rows, columns = shape
    return columns % group_size == 0 and columns % PACK_MULTIPLE == 0 and rows % PACK_MULTIPLE == 0


def packed_bytes(shape: tuple[int, int], bits: int, group_size: int) -> int:
    """Bytes of a packed weight [out, in]: its codes, one fp16 scale and one zero point of `bits` bits a group."""
    rows, columns = shape
    groups = columns // group_size
    return rows * columns * bits // 8 + rows * groups * 2 + rows * groups * bits // 8


def bytes_of(matrices: Iterable[Matrix], bitmap: BitMap, recipe: Recipe) -> int:
    """Bytes of these matrices, all of them packed."""
    return sum(packed_bytes(matrix.shape, width_of(matrix, bitmap, recipe), recipe.group_size) for matrix in matrices)


def quantization_config(layout: Layout, bitmap: BitMap, recipe: Recipe) -> dict[str, Any]:
    """The `quantization_config` of config.json, as auto-round's loader reads it.

    One regular expression for each (layer, width) instead of one key for each module. The loader takes the first
    expression that matches a module, so experts come first, then what has a width of its own, then what stays at 16
    bits, then the rest.
    """
    extra: dict[str, dict[str, Any]] = {}
    widths = bitmap.by_layer()
    for module in layout.modules:
        mine = widths[module.layer][module.first : module.first + module.count]
        extra |= expert_rules(layout.family.expression(module.name), mine, module.form.projections)
    expression = layout.family.expression
    if recipe.rest_bits == "auto":
        extra |= rest_rules(layout.blocks, expression, bitmap.rest)
    elif recipe.rest_bits != 16:
        kept = [matrix.name for matrix in layout.rest if width_of(matrix, bitmap, recipe) == 16]
        extra |= rest_rules(layout.blocks, expression, dict.fromkeys(kept, 16))
    if recipe.rest_bits != 16:
        extra |= rest_rules(layout.blocks, expression, dict.fromkeys(layout.never_quantized, 16))
    left = UNQUANTIZED if recipe.rest_bits in (16, "auto") else {"bits": recipe.rest_bits}
    # Not anchored, so that it comes last in the order of the alphabet too, in which transformers saves a config.
    extra |= {rf"{expression(stack.name)}\.": left for stack in layout.stacks}
    return {
        "quant_method": "auto-round",
        "packing_format": recipe.packing_format,
        "bits": _ANY_BITS,
        "group_size": recipe.group_size,
        "sym": recipe.symmetric,
        "data_type": "int",
        "block_name_to_quantize": layout.blocks,
        "extra_config": extra,
    }


def of_part(config: dict[str, Any], part: str) -> dict[str, Any]:
    """The `quantization_config` of a model for one of its parts, in which all that is quantized is, under the names
    that it has where that part is loaded alone."""
    blocks = [name.removeprefix(f"{part}.") for name in config["block_name_to_quantize"].split(",")]
    before = re.compile(rf"^(\^?){re.escape(re.escape(part))}\\\.")
    rules = {before.sub(r"\1", rule): width for rule, width in config["extra_config"].items()}
    return {**config, "block_name_to_quantize": ",".join(blocks), "extra_config": rules}


def expert_rules(experts: str, widths: list[Widths], modules: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The expressions for one experts module, itself given as one, and its experts' widths: one for each width, and
    one for each projection and width of experts whose projections differ. modules: where in it the projections are, as
    `mopeq_hub.families.base.Form` has them."""
    within = {projection: tuple(map(re.escape, module.split("{}"))) for projection, module in modules.items()}
    (before, _), *_ = within.values()
    indices: dict[tuple[str, int], list[str]] = {}
    for index, width in enumerate(widths):
        for name, bits in {"": width}.items() if isinstance(width, int) else width.items():
            indices.setdefault((name, bits), []).append(str(index))
    rules = {}
    for (name, bits), alike in sorted(indices.items()):
        after = f"{within[name][1]}$" if name else r"\."
        rules[rf"^{experts}\.{before}({'|'.join(alike)}){after}"] = {"bits": bits}
    return rules


def rest_rules(blocks: str, expression: Callable[[str], str], widths: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The expressions for linear layers outside the experts, by name, under `blocks`, the live names of the lists of
    layers with commas between them: one for each kind of layer and width. expression: makes one of a live name."""
    numbers: dict[tuple[str, str, int], list[str]] = {}
    for name, bits in widths.items():
        stack = next(stack for stack in blocks.split(",") if name.startswith(f"{stack}."))
        number, kind = name[len(stack) + 1 :].split(".", 1)
        numbers.setdefault((stack, kind, bits), []).append(number)
    rule = {bits: UNQUANTIZED if bits == 16 else {"bits": bits} for bits in widths.values()}
    return {
        rf"^{expression(stack)}\.({'|'.join(alike)})\.{re.escape(kind)}$": rule[bits]
        for (stack, kind, bits), alike in numbers.items()
    }
