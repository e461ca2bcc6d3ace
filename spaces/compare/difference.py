"""Where two answers first differ, shown to the eye: what both say, then the word at which they part."""

from markup import in_html

AROUND = 12
"""Words shown before and after the one that differs; the whole answers stand above."""


def first_difference(one: str, other: str) -> int | None:
    """The place, from 0, of the first word that differs or that only one answer has; None where all are the same."""
    mine, others = one.split(), other.split()
    for place, (word, its) in enumerate(zip(mine, others, strict=False)):
        if word != its:
            return place
    return None if len(mine) == len(others) else min(len(mine), len(others))


def shown(left: str, right: str) -> str:
    """HTML: the answers are the same, or around the first difference what each says."""
    place = first_difference(left, right)
    if place is None:
        return _paragraph("The answers are the same." if left == right else "The answers differ in spaces alone.")
    sides = "".join(
        f"<dt>{name}</dt><dd>{_around(text, place)}</dd>" for name, text in (("Left", left), ("Right", right))
    )
    return _paragraph(f"The answers first differ at word {place + 1}.") + f'<dl class="difference">{sides}</dl>'


def _around(text: str, place: int) -> str:
    words = text.split()
    before, here, after = words[max(0, place - AROUND) : place], words[place : place + 1], words[place + 1 :]
    parts = ["…"] if place > AROUND else []
    parts += [in_html(word) for word in before]
    parts.append(f"<mark>{in_html(here[0])}</mark>" if here else "<mark>(ends here)</mark>")
    parts += [in_html(word) for word in after[:AROUND]]
    return " ".join(parts + (["…"] if len(after) > AROUND else []))


def _paragraph(words: str) -> str:
    return f'<p class="verdict" role="status">{words}</p>'
