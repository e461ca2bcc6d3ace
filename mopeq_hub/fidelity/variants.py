"""Several budgets of one model set side by side, and which of them is recommended.

In fidelity.json of the main branch, `variants` is a list of dicts as `variant` makes them.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

CLOSE = 0.99
"""Share of the tokens at which a publication has to agree with the original to be as good as the original for most."""


def figures(manifest: dict[str, Any], fidelity: dict[str, Any]) -> dict[str, Any]:
    """Size and closeness of a publication as other documents repeat them."""
    return {
        "bytes": manifest["sizes"]["published_bytes"],
        "experts_bpw": manifest["sizes"]["experts_bpw"],
        "kl": fidelity["kl"],
        "top1_agreement": fidelity["top1_agreement"],
        "perplexity_ratio": fidelity["perplexity"]["ratio"],
        "accuracy": fidelity["accuracy"] and fidelity["accuracy"]["published"],
    }


def variant(name: str, manifest: dict[str, Any], fidelity: dict[str, Any]) -> dict[str, Any]:
    """One of `variants`: the publication on the branch `name`."""
    return {"name": name, "publication": manifest["publication"], **figures(manifest, fidelity)}


def of_main(made: Mapping[str, tuple[dict[str, Any], dict[str, Any]]]) -> tuple[str, dict[str, Any]]:
    """What main is to hold where these variants, by name their manifest and fidelity, are on the branches: the name of
    the recommended one, and fidelity.json."""
    entries = in_order(variant(name, manifest, fidelity) for name, (manifest, fidelity) in made.items())
    chosen = str(recommended(entries)["name"])
    return chosen, dict(json.loads(json.dumps({**made[chosen][1], "variants": entries})))


def named_in(fidelity: dict[str, Any]) -> dict[str, str]:
    """The publications that a fidelity.json compares, by the names of their variants; none where it is of one alone.

    It may be a stranger's: what is not in the documented form is passed over.
    """
    written = fidelity.get("variants")
    entries = [each for each in written if isinstance(each, dict)] if isinstance(written, list) else []
    named = [(each.get("name"), each.get("publication")) for each in entries]
    return {name: of for name, of in named if isinstance(name, str) and isinstance(of, str)}


def inputs_of(fidelity: dict[str, Any]) -> tuple[str, int]:
    """The digest of the questions that a publication was measured on, and how many of their tokens."""
    return fidelity["inputs"]["sha256"], fidelity["inputs"]["token_limit"]


def in_order(variants: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The smallest first; of two of one size, the closer to the original."""
    return sorted(variants, key=lambda each: (each["bytes"], each["kl"]["mean"]))


def is_close(each: dict[str, Any]) -> bool:
    """Whether it agrees with the original on `CLOSE` of the tokens."""
    return bool(each["top1_agreement"] >= CLOSE)


def recommended(variants: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The smallest that is close to the original; where none is, the one with the least KL divergence."""
    ordered = in_order(variants)
    return next(filter(is_close, ordered), min(ordered, key=lambda each: each["kl"]["mean"]))
