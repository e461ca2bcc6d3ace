"""mopeq.json: what a publication says of itself. Built here, read back and checked here, its schema beside it.

The documents are plain JSON objects, checked against the schemas in `mopeq_hub/schemas/`; whoever has a manifest that
came through `read_manifest` may rely on its form.
"""

import hashlib
import json
import platform
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from mopeq_hub.allocation.spread import spread_of
from mopeq_hub.bitmap import BitMap, Widths, by_projection, width_of
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Expert
from mopeq_hub.families import text_model_type
from mopeq_hub.families.base import UNFUSED, matrix_name
from mopeq_hub.model import Model
from mopeq_hub.recipe import FORMAT_VERSION, Recipe
from mopeq_hub.records import sha256_of
from mopeq_hub.sensitivity import Profile
from mopeq_hub.sizes import sizes
from mopeq_hub.source import card_metadata
from mopeq_hub.version import __version__

MANIFEST_NAME = "mopeq.json"
FIDELITY_NAME = "fidelity.json"
SIGNATURE_NAME = "model.sig"
SCHEMA_VERSION = 1
_SCHEMAS = Path(__file__).parent / "schemas"
_PACKAGES = ("torch", "transformers", "auto-round", "safetensors", "numba", "numpy", "scikit-learn")
"""Those whose version can change the bytes or how they load."""
_INHERITED = ("license", "license_name", "license_link", "language")


def publication_name(recipe: Recipe, source_commit: str) -> str:
    """Name of what one recipe makes of one source commit; the tag of the commit that publishes it."""
    return f"mopeq-{recipe.digest[:12]}-{source_commit[:12]}"


def build(
    model: Model,
    recipe: Recipe,
    profile: Profile,
    bitmap: BitMap,
    files: dict[str, Any],
    calibration: dict[str, Any] | None = None,
    selection: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of a publication; `files` as `describe_files` gives it, `calibration` where weights were tuned,
    `selection` where maps were tried."""
    layout, source = model.layout, model.source
    projections = layout.modules[0].form.projections
    bits, sensitivities = bitmap.by_layer(), profile.by_layer()
    kept = [matrix.name for matrix in layout.rest if width_of(matrix, bitmap, recipe) == 16]
    return {
        "schema_version": SCHEMA_VERSION,
        "tool": {"name": "mopeq-hub", "version": __version__, "format_version": FORMAT_VERSION},
        "source": {
            "name": source.name,
            "kind": source.kind,
            "commit": source.commit,
            "card": inherited_card(model),
        },
        "recipe": recipe.to_dict(),
        "recipe_digest": recipe.digest,
        "publication": publication_name(recipe, source.commit),
        "model": {
            "model_type": model.config["model_type"],
            "text_model_type": text_model_type(model.config),
            "auto_class": layout.auto_class,
            "task": layout.task,
            "blocks": layout.blocks,
            "layers": layout.layer_count,
            "experts_per_token": layout.experts_per_token,
            **({"projections": projections} if projections != dict(UNFUSED) else {}),
            **({"parts": {"speaker": layout.speaker, "beside": list(layout.beside)}} if layout.speaker else {}),
        },
        "signal": profile.signal,
        "spread": spread_of(profile, recipe),
        "experts": [
            {
                "layer": layer,
                "module": modules[0].name,
                **({"more": {each.name: each.first for each in modules[1:]}} if len(modules) > 1 else {}),
                "bits": bits[layer],
                "sensitivity": sensitivities[layer],
            }
            for layer, modules in sorted(layout.modules_of.items())
        ],
        "rest": {
            "bits": recipe.rest_bits,
            "quantized": len(layout.rest) - len(kept),
            "unquantized": [name for name in kept if name not in bitmap.rest] if recipe.rest_bits != 16 else [],
            **({"widths": dict(bitmap.rest)} if recipe.rest_bits == "auto" else {}),
        },
        "sizes": sizes(model, recipe, bitmap),
        **({"remote_code": model.code.document()} if model.code else {}),
        **({"calibration": calibration} if calibration else {}),
        **({"selection": selection} if selection else {}),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        "files": files,
    }


def remote_files(manifest: dict[str, Any]) -> dict[str, str]:
    """SHA-256 by name of the Python files of the source's that make the model; none where transformers has its kind."""
    return dict(manifest.get("remote_code", {}).get("files", {}))


def experts_modules(manifest: dict[str, Any]) -> Iterator[tuple[str, list[Widths]]]:
    """Live name of each experts module, and its experts' widths."""
    for entry in manifest["experts"]:
        begins = {entry["module"]: 0, **entry.get("more", {})}
        ends = [*list(begins.values())[1:], len(entry["bits"])]
        for (module, first), end in zip(begins.items(), ends, strict=True):
            yield module, entry["bits"][first:end]


def projections_of(manifest: dict[str, Any]) -> dict[str, str]:
    """The projections of each expert, and where in the experts module each is, as a `Form` has them."""
    return dict(manifest["model"].get("projections", UNFUSED))


def expert_widths(manifest: dict[str, Any]) -> dict[str, int]:
    """The width of each projection of each routed expert, by its module's name at load time."""
    modules = projections_of(manifest)
    return {
        matrix_name(module, index, modules[projection]): bits
        for module, experts in experts_modules(manifest)
        for index, widths in enumerate(experts)
        for projection, bits in by_projection(widths, modules).items()
    }


def bitmap_of(manifest: dict[str, Any]) -> BitMap:
    """The bit map that a manifest describes."""
    return BitMap(
        {
            (Expert(entry["layer"], index), projection): bits
            for entry in manifest["experts"]
            for index, widths in enumerate(entry["bits"])
            for projection, bits in by_projection(widths, projections_of(manifest)).items()
        },
        manifest["rest"].get("widths", {}),
    )


def inherited_card(model: Model) -> dict[str, Any]:
    """What a publication's card takes over from the source's: licence and language, where they are plain text."""
    if "README.md" not in model.source.files():
        return {}
    stated = card_metadata(model.source.path("README.md").read_text("utf-8", errors="replace"))
    taken = {key: stated[key] for key in _INHERITED if key in stated}
    return {key: value for key, value in taken.items() if isinstance(value, str) or _is_texts(value)}


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def describe_files(folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """SHA-256 and size of each named file of a folder."""
    described = {}
    for name in sorted(names):
        described[name] = {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    return described


def holds_its_files(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether every file the manifest describes is in the folder, as it is described."""
    present = [name for name in manifest["files"] if (folder / name).is_file()]
    return describe_files(folder, present) == manifest["files"]


def weights_digest(manifest: dict[str, Any]) -> str:
    """SHA-256 over the manifest's file digests: what a measurement was made on."""
    return hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()


def write_json(path: Path, content: dict[str, Any], schema: str) -> None:
    """Write a document after checking it against its schema (`mopeq` or `fidelity`)."""
    _validate(content, schema, path.name)
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """mopeq.json of a publication. Raises MopeqError where it is missing or not in the form its schema gives."""
    return _read(folder, MANIFEST_NAME, "mopeq", "run `mopeq-hub quantize` first")


def read_fidelity(folder: Path) -> dict[str, Any] | None:
    """fidelity.json of a publication, or None where it was not measured yet."""
    if not (folder / FIDELITY_NAME).is_file():
        return None
    return _read(folder, FIDELITY_NAME, "fidelity", "run `mopeq-hub evaluate` again")


def _read(folder: Path, name: str, schema: str, hint: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text("utf-8"))
    except FileNotFoundError:
        raise MopeqError(f"{folder} holds no {name}, so it is not a publication", hint) from None
    except (OSError, ValueError) as error:
        raise MopeqError(f"{name} in {folder} cannot be read: {error}", hint) from None
    _validate(content, schema, f"{name} in {folder}")
    return content


def _validate(content: Any, schema: str, where: str) -> None:
    import jsonschema

    rules = json.loads((_SCHEMAS / f"{schema}.schema.json").read_text("utf-8"))
    error = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(rules).iter_errors(content))
    if error is not None:
        place = "/".join(str(part) for part in error.absolute_path) or "its top level"
        raise MopeqError(
            f"{where} is not in the form that is documented: at {place}, {error.message[:200]}", "make it again"
        )
