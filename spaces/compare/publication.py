"""The publication that this Space shows: its configuration, and the files of its model repo that the tabs present."""

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download

HERE = Path(__file__).resolve().parent
_METADATA = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#|/)([^)\s]+)\)")
_PICTURE_ELSEWHERE = re.compile(r"!(\[[^\]]*\]\([a-z]+:)")
_PLOT = re.compile(r"plots/[\w-]+\.png")


@dataclass(frozen=True)
class Place:
    """Where a model is: a folder, or a repo on the Hub at a revision."""

    name: str
    revision: str | None

    @property
    def folder(self) -> Path | None:
        """Relative paths start at this Space's folder."""
        path = HERE / self.name
        return path.resolve() if path.is_dir() else None

    @property
    def location(self) -> str:
        """What `from_pretrained` takes."""
        return str(self.folder or self.name)

    @property
    def label(self) -> str:
        return self.folder.name if self.folder else self.name

    @property
    def link(self) -> str | None:
        return None if self.folder else f"https://huggingface.co/{self.name}"

    @property
    def files_link(self) -> str | None:
        """The page of its files at the very revision that is shown here."""
        return f"{self.link}/tree/{self.revision}" if self.link and self.revision else None

    def file(self, name: str) -> Path | None:
        """A file of the repo, or None where it has none or cannot be reached now."""
        if self.folder:
            path = self.folder / name
            return path if path.is_file() else None
        try:
            return Path(hf_hub_download(self.name, name, revision=self.revision))
        except Exception as error:
            print(f"{self.name}: {name}: {error}", flush=True)
            return None

    def weights_bytes(self) -> int | None:
        """Bytes of the weights, None where they cannot be told."""
        sizes = dict(self._sizes())
        safetensors = sum(size for name, size in sizes.items() if name.endswith(".safetensors"))
        return safetensors or sum(size for name, size in sizes.items() if name.endswith(".bin")) or None

    def _sizes(self) -> Iterator[tuple[str, int]]:
        if self.folder:
            yield from ((path.name, path.stat().st_size) for path in self.folder.iterdir() if path.is_file())
            return
        try:
            info = HfApi().model_info(self.name, revision=self.revision, files_metadata=True)
        except Exception as error:
            print(f"{self.name}: {error}", flush=True)
            return
        yield from ((file.rfilename, file.size or 0) for file in info.siblings or [])


@dataclass(frozen=True)
class Publication:
    """publication.json, as mopeq-hub writes it. run: the address of the workflow run that made the publication.

    brings_code: whether the model's repo holds the code that both models are made by. trusts_code: whether each is
    made by code in its own repo, the source's, which runs here.
    """

    name: str
    model: Place
    original: Place | None
    auto_class: str
    title: str
    run: str | None
    takes_pictures: bool = False
    brings_code: bool = False
    trusts_code: bool = False

    @classmethod
    def read(cls, path: Path = HERE / "publication.json") -> "Publication":
        said = json.loads(path.read_text(encoding="utf-8"))
        original = Place(said["original"], said["original_revision"]) if said["original"] else None
        model = Place(said["model"], said["revision"])
        known = said["publication"], model, original, said["auto_class"], said["title"], said["run"]
        flags = ("takes_pictures", "brings_code", "trusts_code")
        return cls(*known, *(said.get(name, False) for name in flags))

    def card(self) -> str | None:
        """The model card without its metadata. Its plots are in it; other links to files of the repo lead to the Hub,
        or are only their words, and a picture from elsewhere becomes a link."""
        path = self.model.file("README.md")
        if path is None:
            return None
        text = _METADATA.sub("", path.read_text(encoding="utf-8", errors="replace"), count=1)
        return _LINK.sub(self._repo_link, _PICTURE_ELSEWHERE.sub(r"\1", text))

    def _repo_link(self, link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        if picture:
            path = self.model.file(target) if _PLOT.fullmatch(target) else None
            return f"![{words}]({_as_address(path)})" if path else ""
        if self.model.link is None:
            return words
        return f"[{words}]({self.model.link}/blob/{self.model.revision or 'main'}/{target})"

    def facts(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the model repo, fidelity.json or mopeq.json; None where it cannot be read."""
        path = self.model.file(name)
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path else None
        except ValueError:
            return None


def _as_address(picture: Path) -> str:
    """A picture inside its own address, so that the page asks no other host for it."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
