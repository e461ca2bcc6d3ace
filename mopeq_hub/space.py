"""The Space of one publication: spaces/compare with its configuration and its README; written here, and run here."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from mopeq_hub import workplace
from mopeq_hub.errors import MopeqError
from mopeq_hub.report import (
    Markdown,
    brings_code,
    code,
    code_of_source,
    hub_address,
    link,
    one_line,
    required,
    takes_pictures,
)
from mopeq_hub.report.templating import render
from mopeq_hub.resources import spaces
from mopeq_hub.version import __version__

PUBLICATION_NAME = "publication.json"
"""What the app reads, and what tells a Space of ours from any other."""

_RUN = re.compile(r"https://[A-Za-z0-9._~/?#&=%+-]+")
_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def render_space(folder: Path, manifest: dict[str, Any], model: str, original: str | None, licence: str | None) -> None:
    """Write the whole Space of a publication into `folder`, always the same bytes for the same arguments.

    manifest: mopeq.json. model: owner/name on the Hub, or a folder; a relative path starts at `folder`. original: the
    same for the source, None to leave it out; where the model is on the Hub, an original in a folder is left out too.
    """
    page = _page(folder, model)
    if page and original and not _page(folder, original):
        original = None
    shutil.copytree(spaces() / "compare", folder, ignore=_left_behind, dirs_exist_ok=True)
    publication = _publication(folder, manifest, model, original)
    needed = [f"mopeq-hub=={__version__}", *required(manifest)]
    with open(folder / "requirements.txt", "a", encoding="utf-8") as requirements:
        requirements.writelines(f"{name}\n" for name in needed)
    (folder / PUBLICATION_NAME).write_text(json.dumps(publication, indent=1) + "\n", "utf-8")
    readme = render(
        "space_readme.md.jinja",
        {"yaml": _yaml_string},
        title=publication["title"],
        task=manifest["model"]["task"],
        takes_pictures=takes_pictures(manifest),
        licence=licence if isinstance(licence, str) and _LICENCE.fullmatch(licence) else None,
        page=page,
        on_hub=[name for name in (model, original) if name and _page(folder, name)],
        model=_named(folder, model),
        original=_named(folder, original) if original else None,
        publication=manifest["publication"],
        commit=_commit_link(folder, manifest, original),
        run=link(Markdown("this workflow run"), publication["run"]) if publication["run"] else None,
    )
    (folder / "README.md").write_text(readme, "utf-8")


def run_local(folder: Path, port: int | None) -> None:
    """Serve a rendered Space on this machine until Ctrl-C. Without a port the first free one from 7860 is taken.

    Raises MopeqError where `folder` holds no Space, gradio is missing, or the Space ends by itself.
    """
    if not (folder / "app.py").is_file():
        raise MopeqError(f"{folder} holds no app.py, so it is not a Space", "publish without --no-space first")
    if importlib.util.find_spec("gradio") is None:
        raise MopeqError("running a Space needs gradio, which is not installed", "pip install 'mopeq-hub[space]'")
    # The Space may be rendered for this visit alone; votes outlive it.
    votes = {"MOPEQ_VOTES": str(workplace.home() / "votes")}
    environment = {**votes, **os.environ, "GRADIO_SERVER_NAME": "127.0.0.1"}
    if port is not None:
        _check_free(port)
        environment["GRADIO_SERVER_PORT"] = str(port)
    try:
        ended = subprocess.run([sys.executable, "app.py"], cwd=folder, env=environment, check=False).returncode
    except KeyboardInterrupt:
        return
    if ended:
        raise MopeqError(f"the Space in {folder} ended with exit code {ended}", "its own message stands above")


def _check_free(port: int) -> None:
    """Raises MopeqError where nothing can be served there; the app would take the next port without a word."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            raise MopeqError(f"port {port} is taken, or no port that may be used", "choose another --port") from None


def _publication(folder: Path, manifest: dict[str, Any], model: str, original: str | None) -> dict[str, Any]:
    """What the app reads. Repos are pinned: the model to the publication's tag, the original to its commit."""
    source = manifest["source"]
    name = one_line(source["name"].split("/")[-1])
    theirs = code_of_source(manifest)
    is_source = source["kind"] == "hub" and original == source["name"]
    return {
        "model": model,
        "revision": manifest["publication"] if _page(folder, model) else None,
        "original": original,
        "original_revision": source["commit"] if is_source else None,
        "auto_class": manifest["model"]["auto_class"],
        "takes_pictures": takes_pictures(manifest),
        "brings_code": brings_code(manifest) and not theirs,
        "trusts_code": bool(theirs),
        "title": f"{name}, original and quantized" if original else f"{name}, quantized",
        "publication": manifest["publication"],
        "run": _run(manifest),
    }


def _run(manifest: dict[str, Any]) -> str | None:
    """The page of the workflow run that made the publication, where its manifest names one that can be a link."""
    provenance = manifest.get("provenance")
    run = provenance.get("run") if isinstance(provenance, dict) else None
    return run if isinstance(run, str) and _RUN.fullmatch(run) else None


def _commit_link(folder: Path, manifest: dict[str, Any], original: str | None) -> Markdown | None:
    """The commit of the source, linked to its files on the Hub; None where the Space does not show the source."""
    source = manifest["source"]
    page = _page(folder, original) if original and original == source["name"] and source["kind"] == "hub" else None
    return link(code(source["commit"][:12]), f"{page}/tree/{source['commit']}") if page else None


def _page(folder: Path, name: str) -> str | None:
    """The page of a model on the Hub; None for a folder."""
    return None if (folder / name).is_dir() else hub_address(name)


def _named(folder: Path, name: str) -> Markdown:
    """A model as the README names it: linked on the Hub, and without the path of a machine elsewhere."""
    page = _page(folder, name)
    return link(code(name), page) if page else code(name.rstrip("/").split("/")[-1])


def _left_behind(_: str, names: list[str]) -> list[str]:
    """What running the app in place leaves beside it."""
    return [name for name in names if name.startswith((".", "__pycache__")) or name == PUBLICATION_NAME]


def _yaml_string(text: str) -> Markdown:
    """The text as a quoted YAML string on one line."""
    import yaml

    return Markdown(yaml.safe_dump(one_line(text), default_style='"', allow_unicode=True, width=10_000).strip())
