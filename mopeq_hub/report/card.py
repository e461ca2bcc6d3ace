"""The model card: the README.md of a publication, data first (metadata by the Hub's rules), prose second (a template).

Names, licences and modules come from strangers' repositories. The template escapes whatever it prints unless it was
made markup on purpose, and the library writes the metadata, so that no name can become a link, a script or a key.
"""

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub.fidelity.variants import CLOSE, is_close
from mopeq_hub.modeling.mends import mend_for
from mopeq_hub.questions import DEFAULT_TOKENS, read_questions
from mopeq_hub.recipe import Recipe
from mopeq_hub.report import (
    Markdown,
    account_address,
    benchmarks,
    brings_code,
    by_projection,
    choices,
    code,
    code_of_source,
    counted,
    counts,
    has_encoder,
    hub_address,
    link,
    listed,
    moment,
    number,
    one_line,
    percent,
    projections,
    required,
    size,
    table_rows,
    takes_pictures,
    this_variant,
    variants,
    widths_in,
)
from mopeq_hub.report.spread import in_words
from mopeq_hub.report.templating import render
from mopeq_hub.untrusted import TRUST

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

Address = Callable[[str | None], str | None]
LICENSE_FILES = ("LICENSE", "LICENSE.md")
"""The names of files beside the card that the Hub takes as a `license_link`."""
TAGS = ("mopeq", "mixture-of-experts", "auto-round")
PLOTS = {
    Markdown("bits.png"): "Bit map, the width of every expert",
    Markdown("sensitivity.png"): "Sensitivity of every expert",
    Markdown("bits_per_layer.png"): "How many experts of each layer have each width",
    Markdown("size_fidelity.png"): "Size against KL divergence from the original",
    Markdown("layer_errors.png"): "Relative error of the hidden states after each layer",
}
"""What each plot shows, in the order in which the card shows them."""

_INPUTS = {
    "own": "questions that nobody wrote, answered by the model itself",
    "calibration": "calibration questions",
    "recombined": "questions recombined from these, answered by the model itself",
}
"""Groups of rows that signals run the model on, in words."""


def inputs_in_words(groups: list[dict[str, Any]]) -> str:
    """On what a signal was measured, as part of a sentence."""
    named = [f"{group['rows']} {_INPUTS.get(group['name'], one_line(group['name']))}" for group in groups]
    return Markdown(f"{listed(named)} ({sum(group['tokens'] for group in groups)} tokens)")


_FILTERS: dict[str, Callable[..., Any]] = {
    "link": link,
    "inputs_in_words": inputs_in_words,
    "listed": listed,
    "number": number,
    "percent": percent,
    "size": size,
    "hub_address": hub_address,
    "account_address": account_address,
    "moment": lambda when: code(moment(when)),
    "in_fence": lambda text: Markdown(one_line(text)),
}
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|multilingual|code")


def write_card(
    folder: Path,
    manifest: dict[str, Any],
    fidelity: dict[str, Any] | None,
    source_card: dict[str, Any] | None,
    repo_id: str | None,
    space_id: str | None,
    branch: str | None = None,
    address: Address = lambda branch: None,
) -> None:
    """Write README.md into the publication's folder. It shows those plots that lie in its folder `plots`.

    source_card: licence and language as the source's own card states them.
    repo_id, space_id: where the publication and its Space will be on the Hub, if they will.
    branch: that of a variant, None for main. address: where the card of a branch is, or for None that of main.
    """
    from huggingface_hub import ModelCard

    licence = inherited_license(manifest, source_card or {}, folder)
    data = _metadata(manifest, fidelity, licence, _languages(source_card or {}), repo_id)
    text = render(
        "model_card.md.jinja",
        _FILTERS,
        **_facts(manifest),
        **_measured(manifest, fidelity),
        **_variants(fidelity, repo_id, address),
        title=_title(manifest, repo_id) + (f" at {one_line(branch)}" if branch else ""),
        model_id=_model_id(repo_id, branch),
        branch=branch,
        main=Markdown(address(None) or ""),
        plots={name: shown for name, shown in PLOTS.items() if (folder / "plots" / name).is_file()},
        licence=_license_in_words(licence),
        space_id=space_id,
    )
    ModelCard(f"---\n{data.to_yaml(line_break=chr(10))}\n---\n\n{text}").save(folder / "README.md")


def recipe_flags(recipe: Recipe) -> list[str]:
    """The options with which `mopeq-hub publish` follows this recipe: the widths, and every choice but the defaults.

    Calibration data are named by a file, which only the manifest knows of.
    """
    flags = ["--bits", ",".join(map(str, recipe.bits))]
    if (recipe.signal, recipe.allocator) == (Recipe.signal, Recipe.allocator) and len(recipe.bits) > 1:
        # Else the command would take the best.
        flags = ["--recipe", "mopeq", *flags]
    for field in fields(Recipe):
        value = getattr(recipe, field.name)
        if field.name == "initial" and re.fullmatch(r".*@[0-9a-f]{64}", value):
            value = f"path/to/{value.rpartition('@')[0]}"
        if field.name in ("bits", "calibration", "questions") or value == field.default:
            continue
        flags += ["--asymmetric"] if field.name == "symmetric" else ["--" + field.name.replace("_", "-"), str(value)]
    return flags


def inherited_license(manifest: dict[str, Any], source_card: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The source's licence as metadata; empty where it is unknown or the Hub would refuse it.

    A link into the source's repo is made a full address. `other` needs a name and a link; where there is no link, a Hub
    source has its page for one, a folder the licence file that came with it.
    """
    names = source_card.get("license")
    known = [name for name in (names if isinstance(names, list) else [names]) if isinstance(name, str)]
    if not known or not all(_LICENSE.fullmatch(name) for name in known):
        return {}
    licence: dict[str, Any] = {"license": names}
    title = source_card.get("license_name")
    if isinstance(title, str) and one_line(title):
        licence["license_name"] = one_line(title)
    address = _license_link(manifest, source_card.get("license_link"), folder)
    if address and (names == "other" or source_card.get("license_link")):
        licence["license_link"] = address
    return {} if names == "other" and len(licence) < 3 else licence


def _license_link(manifest: dict[str, Any], given: Any, folder: Path) -> str | None:
    page = hub_address(manifest["source"]["name"]) if manifest["source"]["kind"] == "hub" else None
    if isinstance(given, str) and given.startswith("https://"):
        return one_line(given)
    if page and isinstance(given, str) and re.fullmatch(r"[\w./-]+", given):
        return f"{page}/blob/{manifest['source']['commit']}/{given}"
    beside = next((name for name in LICENSE_FILES if (folder / name).is_file()), None)
    return page or beside


def _languages(source_card: dict[str, Any]) -> list[str]:
    """The source's language codes. YAML reads `no`, Norwegian, as false."""
    given = source_card.get("language")
    codes = ["no" if code is False else code for code in (given if isinstance(given, list) else [given])]
    return [code for code in codes if isinstance(code, str) and _LANGUAGE.fullmatch(code)]


def _metadata(
    manifest: dict[str, Any],
    fidelity: dict[str, Any] | None,
    licence: dict[str, Any],
    languages: list[str],
    repo_id: str | None,
) -> "ModelCardData":
    from huggingface_hub import ModelCardData

    source = manifest["source"]
    from_hub = source["kind"] == "hub" and hub_address(source["name"]) is not None
    results = _results(manifest, fidelity) if fidelity else []
    results += benchmarks.card_results(manifest["model"]["task"], fidelity) if fidelity else []
    widths = [f"{width}-bit" for width in counts(manifest)]
    return ModelCardData(
        base_model=source["name"] if from_hub else None,
        base_model_relation="quantized" if from_hub else None,
        language=languages or None,
        library_name="transformers",
        **licence,
        pipeline_tag=manifest["model"]["task"],
        tags=[*TAGS, *(["mixed-precision"] if len(widths) > 1 else []), *widths],
        model_name=_title(manifest, repo_id) if results else None,
        eval_results=results or None,
    )


def _results(manifest: dict[str, Any], fidelity: dict[str, Any]) -> list["EvalResult"]:
    """The measured numbers, rounded to six digits; a number that is not finite has no form on the Hub."""
    from huggingface_hub import EvalResult

    metrics = [
        ("kl_divergence", "Mean KL divergence from the original, nats", fidelity["kl"]["mean"]),
        ("top1_agreement", "Top-1 agreement with the original", fidelity["top1_agreement"]),
    ]
    if fidelity["accuracy"]:
        metrics.append(("accuracy", "Exact answers by greedy decoding", fidelity["accuracy"]["published"]))
    return [
        EvalResult(
            task_type=manifest["model"]["task"],
            dataset_type=re.sub(r"[^A-Za-z0-9_.-]+", "-", fidelity["inputs"]["name"]),
            dataset_name=_inputs_name(fidelity),
            dataset_revision=fidelity["inputs"]["sha256"],
            metric_type=metric,
            metric_name=name,
            metric_value=float(f"{value:.6g}"),
        )
        for metric, name, value in metrics
        if math.isfinite(value)
    ]


def _facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the template says of how the publication was made."""
    experts_of = counts(manifest)
    rest = dict(sorted(Counter(manifest["rest"].get("widths", {}).values()).items()))
    parts = manifest["model"].get("parts")
    return {
        "manifest": manifest,
        "calibration": manifest.get("calibration"),
        "selection": _selection(manifest),
        "provenance": manifest.get("provenance"),
        "recipe": Recipe.from_dict(manifest["recipe"]),
        "source": _source_name(manifest),
        "experts_of": experts_of,
        "expert_count": sum(len(layer["bits"]) for layer in manifest["experts"]),
        "widths": [str(width) for width in experts_of],
        "by_projection": by_projection(manifest),
        "counts": _counts(experts_of, lambda count: counted(manifest, count)),
        "rest_counts": _counts(rest, lambda count: "layer" if count == 1 else "layers") if rest else "",
        "mixed_layers": any(len({*widths_in(manifest, layer)}) > 1 for layer in manifest["experts"]),
        "spread": Markdown(in_words(manifest["spread"])) if "spread" in manifest else None,
        "auto_class": _auto_class(manifest),
        "takes_pictures": takes_pictures(manifest),
        # Their names go into code, and are identifiers by the schema.
        "speaker": Markdown(parts["speaker"]) if parts else None,
        "beside": Markdown(listed([code(name) for name in parts["beside"]])) if parts and parts["beside"] else "",
        "has_encoder": has_encoder(manifest),
        "layers_of": "encoder and the decoder" if has_encoder(manifest) else "decoder",
        "projections": listed([*projections(manifest)]),
        "own_class": not any(name.startswith("configuration_") for name in manifest["files"]),
        "brings_code": brings_code(manifest),
        "source_code": _source_code(manifest),
        "required": required(manifest),
        "mend": mend.why if (mend := mend_for(manifest["model"]["model_type"])) else None,
        "command": Markdown(_command(manifest)),
    }


def _source_code(manifest: dict[str, Any]) -> Markdown | None:
    """The Python files of the source's that the publication brings, each a link to it; None where it brings none."""
    files = [f"[{code(name)}]({name})" for name in code_of_source(manifest)]
    return Markdown(listed(files)) if files else None


def _selection(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """The maps that were tried, where any were, and the name of the chosen one."""
    if "selection" not in manifest:
        return None
    tried = manifest["selection"]["tried"]
    return {"tried": tried, "chosen": next((row["name"] for row in tried if row["chosen"]), "none")}


def _counts(found: dict[int, int], noun: Callable[[int], str]) -> str:
    """How many have each width, as a sentence: `3 experts have 2 bits and 1 has 4`."""
    words = [f"{count} {'has' if count == 1 else 'have'} {width}" for width, count in found.items()]
    (width, count), *_ = found.items()
    return listed([f"{count} {noun(count)} {'has' if count == 1 else 'have'} {width} bits", *words[1:]])


def _measured(manifest: dict[str, Any], fidelity: dict[str, Any] | None) -> dict[str, Any]:
    """What the template says of how close the publication is."""
    return {
        "fidelity": fidelity,
        "rows": list(table_rows(choices(manifest, fidelity))),
        "inputs": _inputs_name(fidelity) if fidelity else None,
        "benchmarks": list(benchmarks.rows(fidelity)),
        "benchmark_limit": benchmarks.limited(fidelity),
    }


def _variants(fidelity: dict[str, Any] | None, repo_id: str | None, address: Address) -> dict[str, Any]:
    """What the template says of a repo with several budgets."""
    rows, this = variants(fidelity), this_variant(fidelity)
    names = [row.name for row in rows]
    links = [_beside(code(name), address(name)) for name in names]
    recommended = next((each for each in (fidelity or {}).get("variants", []) if each["name"] == this), None)
    other = next((name for name in names if name != this), None)
    return {
        "variants": [(shown, *cells[1:]) for shown, cells in zip(links, table_rows(rows), strict=True)],
        "chosen": names.index(this) if this else None,
        "is_close": recommended is not None and is_close(recommended),
        "close": f"{CLOSE:.0%}",
        "here": code("main") if repo_id else "this folder",
        "repo_id": repo_id,
        "other_id": _model_id(repo_id, other),
    }


def _beside(label: Markdown, address: str | None) -> Markdown:
    """A link to another card of ours: a page of the Hub, or a path that begins here and is quoted."""
    return Markdown(f"[{label}]({address})") if address and address.startswith("../") else link(label, address)


def _model_id(repo_id: str | None, branch: str | None) -> str:
    """The first arguments of `from_pretrained`."""
    if repo_id is None:
        return json.dumps("path/to/this/folder")
    return json.dumps(repo_id) + (f", revision={json.dumps(branch)}" if branch else "")


def _license_in_words(licence: dict[str, Any]) -> Markdown | None:
    """The licence's name, linked where it has a text of its own."""
    if not licence:
        return None
    names = licence["license"]
    name = licence.get("license_name") or listed(names if isinstance(names, list) else [names])
    address = licence.get("license_link")
    beside = address in LICENSE_FILES
    return Markdown(f"[{code(name)}]({address})") if beside else link(code(name), address)


def _title(manifest: dict[str, Any], repo_id: str | None) -> str:
    return one_line((repo_id or manifest["source"]["name"] + "-MoPEQ").split("/")[-1])


def _source_name(manifest: dict[str, Any]) -> Markdown:
    """The source as a code span, linked to its page at its commit where it is on the Hub."""
    source = manifest["source"]
    page = hub_address(source["name"]) if source["kind"] == "hub" else None
    return link(code(source["name"]), page and f"{page}/tree/{source['commit']}")


def _auto_class(manifest: dict[str, Any]) -> str:
    """The class's name, which goes into code: only an identifier can."""
    name = manifest["model"]["auto_class"]
    return Markdown(name) if name.isascii() and name.isidentifier() else "AutoModelForImageTextToText"


def _inputs_name(fidelity: dict[str, Any]) -> str:
    name = fidelity["inputs"]["name"]
    return "mopeq-hub bundled pictures and prompts" if name == "bundled" else one_line(name)


def _command(manifest: dict[str, Any]) -> str:
    """The command line that makes the same bytes again; on one line, so that no name can end the fence around it."""
    source = manifest["source"]
    model = f"{source['name']}@{source['commit']}" if source["kind"] == "hub" else f"path/to/{source['name']}"
    recipe = Recipe.from_dict(manifest["recipe"])
    flags = [*([TRUST] if code_of_source(manifest) else []), *recipe_flags(recipe)]
    known = {"bundled": recipe.calibration in ("", read_questions(None).digest)}
    if not manifest.get("calibration", known)["bundled"]:
        flags += ["--calibration", "path/to/calibration.jsonl"]
    if "selection" in manifest:
        # The map was chosen on them.
        asked = manifest["selection"]["questions"]
        flags += [] if asked["name"] == "bundled" else ["--questions", f"path/to/{one_line(asked['name'])}"]
        flags += [] if asked["limit"] == DEFAULT_TOKENS else ["--fidelity-tokens", str(asked["limit"])]
    # To a folder: without a destination it would go to the reader's own account.
    return shlex.join(["mopeq-hub", "publish", one_line(model), "--to", "./rebuilt", *flags])
