"""`check`: is a publication what its manifest says, down to every tensor, and does it load?"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

from mopeq_hub import manifest as manifests
from mopeq_hub.bitmap import expert_rules, rest_rules
from mopeq_hub.checkpoint import Checkpoint, TensorInfo
from mopeq_hub.errors import MopeqError
from mopeq_hub.families import family_of
from mopeq_hub.fidelity.measure import check_loading, load_alone
from mopeq_hub.hub import destination_for
from mopeq_hub.hub.published import Published
from mopeq_hub.manifest import (
    FIDELITY_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    expert_widths,
    experts_modules,
    remote_files,
)
from mopeq_hub.modeling.mends import mend_for
from mopeq_hub.modeling.registry import added
from mopeq_hub.packing import PARTS
from mopeq_hub.progress import Progress, Quiet
from mopeq_hub.recipe import Recipe
from mopeq_hub.remote_code import referenced
from mopeq_hub.signing import Signatory, is_signed
from mopeq_hub.untrusted import TRUST, check_name, read_object

_DANGEROUS = (".py", ".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".safetensors")
"""Endings of files that a loader could prefer to those that were published."""
_POINTING = re.compile(r"([a-z_]+_)?config\.json")
"""Files in which transformers looks for classes in code."""
_Look = Callable[[Published, dict[str, Any]], None]
"""One check: raises MopeqError, or whatever reading comes to, where something is not as it should be."""


@dataclass(frozen=True)
class Finding:
    """One thing that was checked; `trouble` is None where it is as it should be."""

    subject: str
    trouble: str | None


def check(
    to: str,
    progress: Progress | None = None,
    *,
    load: bool = True,
    signatory: Signatory | None = None,
    trust_remote_code: bool = False,
) -> list[Finding]:
    """Check the publication at `to`, a folder or owner/name: its files, its tensors, its metadata, and that it loads.

    load: whether to load it, which takes the memory of the whole model; without it the weights of a repo are not
    downloaded, and the Hub is believed their hashes. signatory: whose signature it should have; None where that does
    not matter. trust_remote_code: whether code of its source's that it brings may be run to load it; without that, it
    is not loaded where it brings some.
    Raises MopeqError where there is no publication to check. What is wrong with one is in the findings.
    """
    progress = progress or Quiet()
    published = destination_for(to, to).look(whole=load)
    if MANIFEST_NAME not in published.names:
        raise MopeqError(f"{to} holds no {MANIFEST_NAME}, so it is not a publication", "publish it first")
    manifest = manifests.read_manifest(published.folder())
    checks: list[tuple[str, _Look]] = [
        ("every file has its hash", _hashes),
        ("it brings no foreign code and no pickles", _code),
        ("every tensor fits the bit map", _tensors),
        ("the loader's configuration fits the bit map", _configuration),
        ("the recipe has its digest", _recipe),
        ("fidelity was measured on these files", _fidelity),
        ("the card's metadata is complete", _card),
    ]
    if signatory:
        checks.append((f"it is signed by {signatory}", partial(_signature, signatory)))
    theirs = remote_files(manifest)
    if load and (trust_remote_code or not theirs):
        checks.append(("it loads, every weight in its place", _loads))
    findings = []
    if theirs:
        findings.append(Finding(_on_code(theirs, load and not trust_remote_code), None))
    if SIGNATURE_NAME in published.names and not signatory:
        findings.append(Finding("signed, not verified: --key or --identity says whose signature to expect", None))
    if mend := mend_for(manifest["model"]["model_type"]):
        words = f"to load it, write `import mopeq_hub` before `from_pretrained`: auto-round {mend.why}"
        findings.append(Finding(words, None))
    with progress.stage("check", len(checks), "checks") as advance:
        for subject, look in checks:
            findings.append(Finding(subject, _trouble(look, published, manifest)))
            advance(1)
    return findings


def _trouble(look: _Look, published: Published, manifest: dict[str, Any]) -> str | None:
    try:
        look(published, manifest)
    except MopeqError as error:
        return error.what
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # A publication that was tampered with can be wrong in ways that no check foresees.
        return f"it cannot be read: {type(error).__name__}: {error}"
    return None


def _hashes(published: Published, manifest: dict[str, Any]) -> None:
    for name, expected in manifest["files"].items():
        if check_name(name, MANIFEST_NAME) not in published.names:
            raise MopeqError(f"{name} is missing")
        if published.describe(name) != expected:
            raise MopeqError(f"{name} is not the file that was published")


def _on_code(theirs: Mapping[str, str], untried: bool) -> str:
    """What whoever may load it should know of the source's code that it brings."""
    brings = f"it brings code of its source's, unchanged, which loading it runs: {', '.join(theirs)}"
    return f"{brings}; so it was not loaded, {TRUST} tries that" if untried else brings


def _code(published: Published, manifest: dict[str, Any]) -> None:
    """No code but the model's own, ours or the source's that was run to make it, and no way to any other."""
    own, theirs = added(manifest["model"]["model_type"]), remote_files(manifest)
    allowed = {name for name in published.names if own and re.fullmatch(rf"[a-z_]+_{own.package}\.py", name)}
    for name in sorted(published.names - allowed - theirs.keys()):
        if name.endswith(".py"):
            raise MopeqError(f"{name} is code, and no part of the model's own")
    for name, digest in theirs.items():
        if name not in published.names:
            raise MopeqError(f"{name}, which its model is made by, is missing")
        if published.describe(name)["sha256"] != digest:
            raise MopeqError(f"{name} is not the code that was run to make and prove it")
    for name in sorted(published.names - set(manifest["files"])):
        if name.endswith(_DANGEROUS):
            raise MopeqError(f"{name} is not part of the publication")
    for name in sorted(name for name in published.names if _POINTING.fullmatch(name)):
        content = read_object((published.folder(name) / name).read_text("utf-8", errors="replace"))
        for file in referenced(content, name):
            if file not in allowed | theirs.keys():
                raise MopeqError(f"{name} points to {file}, which is no part of the model's own code")


def _tensors(published: Published, manifest: dict[str, Any]) -> None:
    """From the headers alone: each expert's packed shapes belong to its width, and no packed tensor is left over."""
    tensors = Checkpoint(published.source).tensors
    group_size = manifest["recipe"]["group_size"]
    packed = {name.rpartition(".")[0] for name in tensors if name.endswith((".qweight", ".qzeros"))}
    for name, bits in expert_widths(manifest).items():
        _check_width(name, bits, group_size, tensors)
        packed.discard(name)
    rest = manifest["rest"]
    of = {name: bits for name, bits in rest.get("widths", dict.fromkeys(packed, rest["bits"])).items() if bits != 16}
    for name, bits in of.items():
        _check_width(name, bits, group_size, tensors)
    if len(packed) != rest["quantized"] or packed - of.keys():
        raise MopeqError(f"{len(packed)} linear layers outside the experts are packed, not {rest['quantized']}")


def _check_width(name: str, bits: int, group_size: int, tensors: dict[str, TensorInfo]) -> None:
    """The three tensors of a packed weight, by the shapes that `mopeq_hub.packing` documents."""
    try:
        qweight, qzeros, scales = (tensors[f"{name}.{part}"] for part in PARTS)
    except KeyError as error:
        raise MopeqError(f"{error.args[0]} is missing") from None
    groups, rows = scales.shape
    expected = (("I32", (groups * group_size * bits // 32, rows)), ("I32", (groups, rows * bits // 32)))
    if ((qweight.dtype, qweight.shape), (qzeros.dtype, qzeros.shape)) != expected or scales.dtype != "F16":
        raise MopeqError(f"{name} does not have the shape of {bits} bits")


def _configuration(published: Published, manifest: dict[str, Any]) -> None:
    """config.json begins with the very expressions that the bit map gives, so that no later one can come before them.

    They are compared, not run: a stranger's expression can take forever.
    """
    config = json.loads((published.folder("config.json") / "config.json").read_text("utf-8"))["quantization_config"]
    expected: dict[str, Any] = {}
    made = manifest["model"]
    family = family_of(made["model_type"], made["text_model_type"], foreign=bool(remote_files(manifest)))
    for module, widths in experts_modules(manifest):
        expected |= expert_rules(family.expression(module), widths, manifests.projections_of(manifest))
    expected |= rest_rules(made["blocks"], family.expression, manifest["rest"].get("widths", {}))
    found = list(config["extra_config"].items())[: len(expected)]
    for (pattern, rule), (found_pattern, found_rule) in zip_longest(expected.items(), found, fillvalue=("nothing", {})):
        if (pattern, rule) != (found_pattern, found_rule):
            raise MopeqError(f"config.json says {found_pattern}: {found_rule}, the bit map {pattern}: {rule}")
    recipe = Recipe.from_dict(manifest["recipe"])
    for key, value in (("group_size", recipe.group_size), ("sym", recipe.symmetric)):
        if config[key] != value:
            raise MopeqError(f"config.json says {key}: {config[key]}, the recipe {value}")


def _recipe(published: Published, manifest: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(manifest["recipe"])
    if recipe.digest != manifest["recipe_digest"]:
        raise MopeqError("the recipe in mopeq.json does not have the digest beside it")
    if manifests.publication_name(recipe, manifest["source"]["commit"]) != manifest["publication"]:
        raise MopeqError("the publication's name does not come from its recipe and source")


def _fidelity(published: Published, manifest: dict[str, Any]) -> None:
    fidelity = manifests.read_fidelity(published.folder(FIDELITY_NAME))
    if fidelity is None:
        raise MopeqError("there is no fidelity.json")
    if fidelity["weights_digest"] != manifests.weights_digest(manifest):
        raise MopeqError("fidelity.json was measured on other files")


def _card(published: Published, manifest: dict[str, Any]) -> None:
    from huggingface_hub import ModelCard

    if "README.md" not in published.names:
        raise MopeqError("there is no README.md")
    try:
        data = ModelCard.load(published.folder("README.md") / "README.md", ignore_metadata_errors=False).data
    except ValueError as error:
        raise MopeqError(f"the metadata of README.md cannot be read: {error}") from None
    expected = {"library_name": "transformers", "pipeline_tag": manifest["model"]["task"]}
    if manifest["source"]["kind"] == "hub":
        expected |= {"base_model": manifest["source"]["name"], "base_model_relation": "quantized"}
    for key, value in expected.items():
        if data.get(key) not in (value, [value]):
            raise MopeqError(f"the card's {key} is {data.get(key)!r}, not {value!r}")


def _signature(signatory: Signatory, published: Published, manifest: dict[str, Any]) -> None:
    if SIGNATURE_NAME not in published.names:
        raise MopeqError(f"there is no {SIGNATURE_NAME}, so nobody signed it")
    digests = {name: published.describe(name)["sha256"] for name in sorted(published.names) if is_signed(name)}
    signatory.verify(published.folder(SIGNATURE_NAME) / SIGNATURE_NAME, digests)


def _loads(published: Published, manifest: dict[str, Any]) -> None:
    trusted = bool(remote_files(manifest))
    if trusted:
        # Nothing is run that is not what somebody read and trusted.
        _code(published, manifest)
        _hashes(published, manifest)
    check_loading(load_alone(published.folder(), manifest["model"]["auto_class"], trusted), manifest)
