"""What a publication gets on its way to its destination: who made it and when, a card that says where it is, a
signature, and the Space beside it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mopeq_hub import manifest as manifests
from mopeq_hub import provenance, workplace
from mopeq_hub.errors import MopeqError
from mopeq_hub.fidelity.variants import named_in
from mopeq_hub.hub import Destination
from mopeq_hub.progress import Progress
from mopeq_hub.report import card as cards
from mopeq_hub.report import plots
from mopeq_hub.signing import Signer, signer_for
from mopeq_hub.space import render_space
from mopeq_hub.untrusted import read_object


@dataclass(frozen=True)
class Publication:
    """What went where. `commit` and `space_commit` are None where nothing had to change, or nothing was to be
    pushed."""

    name: str
    destination: str
    commit: str | None
    space_commit: str | None
    changed: bool
    manifest: dict[str, Any]
    fidelity: dict[str, Any] | None
    note: str | None = None


def signer_named(sign: str | None) -> Signer | None:
    """Who signs. Raises MopeqError where that is nobody, or the time is none, before the work instead of after it."""
    provenance.moment()
    return signer_for(sign) if sign else None


def is_there(destination: Destination, name: str, signer: Signer | None) -> bool:
    """Whether the destination holds just this publication, and a signature if there is to be one.

    What is there unsigned is made again: nobody signs what somebody else may have put there.
    """
    if destination.publication() != name:
        return False
    return signer is None or manifests.SIGNATURE_NAME in destination.look().names


def compared_at(destination: Destination) -> dict[str, str]:
    """The publications that main compares, by their branches, where several budgets were published there; else none.

    What is there may be damaged, or a stranger's.
    """
    return {} if destination.branch else named_in(read_object(_text_at(destination, manifests.FIDELITY_NAME)))


def says_the_same(destination: Destination, fidelity: dict[str, Any], edited_card: Path | None) -> bool:
    """Whether a destination that holds this very publication says of it what a folder says: its fidelity, whatever else
    main compares it with, and its card where that was edited by hand."""
    there = read_object(_text_at(destination, manifests.FIDELITY_NAME))
    if {**there, "variants": None} != {**fidelity, "variants": None}:
        return False
    return edited_card is None or edited_card.read_bytes() == _text_at(destination, "README.md").encode()


def _text_at(destination: Destination, name: str) -> str:
    """A file as it is there, which may be anybody's; empty where there is none, or no text."""
    try:
        return destination.read_text(name)
    except (MopeqError, UnicodeDecodeError):
        return ""


def place_of(destination: Destination, compared: Mapping[str, str], budget: str, name: str) -> Destination:
    """Where a publication of this budget belongs: on its branch, where it is one of those that main compares and main
    holds another of them; else at the destination itself."""
    listed = compared.get(budget) == name and destination.publication() not in (None, name)
    return destination.variant(budget) if listed else destination


def card(folder: str | Path, destination: Destination | None = None, *, space: bool = True) -> Path:
    """Write README.md and plots of a quantized folder; `destination` is where the card says it can be found."""
    folder = Path(folder)
    manifest, fidelity = manifests.read_manifest(folder), manifests.read_fidelity(folder)
    plots.draw(manifest, fidelity, folder)
    return write_card(folder, destination, space)


def write_card(folder: Path, destination: Destination | None, space: bool) -> Path:
    """The card alone, with the plots that are there."""
    manifest, fidelity = manifests.read_manifest(folder), manifests.read_fidelity(folder)
    stated = manifest["source"]["card"]
    if destination is None:
        cards.write_card(folder, manifest, fidelity, stated, None, None)
    else:
        repo_id, branch = destination.repo_id, destination.branch
        space_id = repo_id if space and not branch else None
        cards.write_card(folder, manifest, fidelity, stated, repo_id, space_id, branch, destination.address)
    return folder / "README.md"


def completed(
    folder: Path, destination: Destination, signer: Signer | None, *, space: bool, card_too: bool = True
) -> dict[str, Any]:
    """Give a folder what it gets on its way to a destination: provenance, a card that says where it is, a signature.

    card_too: not where the card was edited by hand. Returns the manifest that is published.
    """
    manifest = provenance.record(folder, destination.account)
    if card_too:
        write_card(folder, destination, space)
    if signer:
        signer.sign(folder, manifest)
    return manifest


def deliver(
    folder: Path,
    destination: Destination,
    signer: Signer | None,
    location: str | None,
    work: Path,
    *,
    space: bool,
    progress: Progress,
) -> Publication:
    """Publish a measured folder, which is not needed afterwards; those of its files that are not there were sent.

    location: of the original, for the Space, which is rendered in `work`.
    """
    manifest = completed(folder, destination, signer, space=space)
    name, fidelity = manifest["publication"], manifests.read_fidelity(folder)
    sent = {file: told for file, told in manifest["files"].items() if not (folder / file).exists()}
    commit = destination.commit(folder, name, progress, consume=True, sent=sent)
    space_commit = publish_space_of(destination, manifest, location, work) if space else None
    return Publication(name, destination.name, commit, space_commit, True, manifest, fidelity)


def publish_space_of(
    destination: Destination, manifest: dict[str, Any], location: str | None, work: Path
) -> str | None:
    """Render the Space of what `destination` holds and commit it; None where it was up to date. A branch has none.

    location: of the original, for a destination from where a folder on this machine can be reached.
    """
    if destination.branch:
        return None
    source = manifest["source"]
    original = source["name"] if source["kind"] == "hub" else destination.path_for_space(location)
    render_space(work / "space", manifest, destination.model_for_space(), original, source["card"].get("license"))
    return destination.commit_space(work / "space", manifest["publication"])


def published_manifest(destination: Destination) -> dict[str, Any]:
    """mopeq.json as it is there. Raises MopeqError where it is missing or not in the form its schema gives."""
    with workplace.scratch() as work:
        (work / manifests.MANIFEST_NAME).write_text(destination.read_text(manifests.MANIFEST_NAME), "utf-8")
        return manifests.read_manifest(work)


def unchanged(destination: Destination, name: str, location: str | None, *, space: bool, dry_run: bool) -> Publication:
    """The model is published already; tag and Space are made up for if an earlier run did not come to them."""
    manifest = published_manifest(destination)
    space_commit = None
    if not dry_run:
        destination.tag(name)
        if space:
            with workplace.scratch() as work:
                space_commit = publish_space_of(destination, manifest, location, work)
    fidelity = json.loads(destination.read_text(manifests.FIDELITY_NAME))
    return Publication(name, destination.name, None, space_commit, space_commit is not None, manifest, fidelity)
