"""Source: where a model comes from, a Hub repo at a pinned commit or a folder, with its files on demand."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from tqdm.auto import tqdm

from mopeq_hub import hub_client
from mopeq_hub.errors import MopeqError, UsageError
from mopeq_hub.progress import Advance
from mopeq_hub.records import sha256_of
from mopeq_hub.tensors import Files
from mopeq_hub.untrusted import check_name

_HUB_NAME = re.compile(r"^[\w.-]+/[\w.-]+(@[^@\s]+)?$")
_MAX_JSON_BYTES = 10_000_000
_FIRST_BYTES = 100_000
"""Fetched at once when a header is asked for: most headers fit, and a second request costs more than the bytes."""

_PARTIAL_CONTENT = 206

_COMPANIONS = (
    r"(preprocessor|processor|video_preprocessor|image_processor|feature_extractor)_config\.json",
    r"tokenizer(_config)?\.json", r"tokenizer\.model(\.v\d+)?", r"special_tokens_map\.json", r"added_tokens\.json",
    r"vocab\.(json|txt|bpe)", r"merges\.txt", r"(spiece|sentencepiece(\.bpe)?|tiktoken)\.model", r"[\w.-]+\.tiktoken",
    r"chat_template\.(json|jinja)", r"additional_chat_templates/[\w.-]+\.jinja", r"generation_config\.json",
    r"(?i:(license|licence|notice|copying|use_policy|usage_policy)([-_][\w-]+)?(\.(md|txt|rst|pdf))?)",
)  # fmt: skip
_OF_THE_MODEL = re.compile(rf"config\.json|README\.md|.*\.safetensors(\.index\.json)?|{'|'.join(_COMPANIONS)}")
_TORCH_FILE = re.compile(r".*\.bin(\.index\.json)?")
_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_COMPANION = re.compile("|".join(_COMPANIONS))


class Source(Files, Protocol):
    """A model's files. `commit` pins them: a Hub commit, or the digest of a folder's contents.

    `name` is what the user called it, without the revision and without a path of this machine.
    """

    @property
    def kind(self) -> str:
        """`hub` or `folder`."""

    @property
    def commit(self) -> str: ...

    @property
    def location(self) -> str:
        """What finds it again on this machine: owner/name@commit, or the folder's path."""

    def fetch(self, name: str, advance: Advance) -> None:
        """Have the file on this machine; `advance` is told its bytes as they arrive, or at once where it was here."""

    def let_go(self, name: str) -> None:
        """The file is not needed any more: where files only pass through, it goes from the disk."""

    def strays(self, name: str) -> bool:
        """Whether the file is a link to somewhere outside the source, from where nothing may be published."""

    def include(self, names: Iterable[str]) -> None:
        """These files are the model's own too: its commit is to pin them. Said before anybody asks for that."""


class FolderSource:
    """A model in a folder, laid out as a Hub repo would be. It is only ever read."""

    kind = "folder"

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self.name = self._folder.name
        self.location = str(self._folder)
        self._included: frozenset[str] = frozenset()
        self._hashing = Lock()
        self._commit: str | None = None

    def files(self) -> Mapping[str, int]:
        return self._files

    @cached_property
    def _files(self) -> dict[str, int]:
        found = {}
        for path in sorted(self._folder.rglob("*")):
            relative = path.relative_to(self._folder)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                found[relative.as_posix()] = path.stat().st_size
        return found

    @property
    def commit(self) -> str:
        """SHA-256 over the names and contents of the model's own files: the same model anywhere is the same commit.

        Weights, index, config, companions and card, and what was included; whatever else lies in the folder changes
        nothing, such as the same weights in torch's files beside those in safetensors.
        """
        with self._hashing:
            if self._commit is None:
                whole = hashlib.sha256()
                safe = any(name.endswith(".safetensors") for name in self._files)
                for name in self._files:
                    own = name in self._included or _OF_THE_MODEL.fullmatch(name)
                    if not own and (safe or not _TORCH_FILE.fullmatch(name)):
                        continue
                    whole.update(f"{name}\0{sha256_of(self._folder / name)}\n".encode())
                self._commit = whole.hexdigest()
            return self._commit

    def include(self, names: Iterable[str]) -> None:
        self._included |= frozenset(names)

    def path(self, name: str) -> Path:
        return self._folder / check_name(name, self.name)

    def fetch(self, name: str, advance: Advance) -> None:
        advance(self._files[name])

    def let_go(self, name: str) -> None:
        pass

    def strays(self, name: str) -> bool:
        homes = [self._folder]
        if self._folder.parent.name == "snapshots":
            # A snapshot in the Hub's cache is made of links to the blobs beside it.
            homes.append(self._folder.parent.parent / "blobs")
        return not any(self.path(name).resolve().is_relative_to(home) for home in homes)

    def part(self, name: str, start: int, count: int) -> bytes:
        with open(self.path(name), "rb") as file:
            file.seek(start)
            return file.read(count)


class HubSource:
    """A model on the Hub, at the commit its revision pointed to when it was opened."""

    kind = "hub"

    def __init__(self, repo_id: str, revision: str | None = None) -> None:
        """Resolve `revision` (default: the main branch) to a commit. Raises MopeqError if it cannot be had.

        `digests` then has the SHA-256, in hex, of the files of which the Hub knows it: the large ones.
        """
        self.name = repo_id
        where = f"{repo_id}@{revision}" if revision else repo_id
        with hub_client.hub_errors(where):
            info = hub_client.api().model_info(repo_id, revision=revision, files_metadata=True)
        if info.sha is None or info.siblings is None:
            raise MopeqError(f"the Hub did not say which commit and files {where} has", "try again later")
        self.commit: str = info.sha
        self.location = f"{repo_id}@{self.commit}"
        self._files = {check_name(file.rfilename, where): file.size or 0 for file in info.siblings}
        self.digests = {file.rfilename: file.lfs.sha256 for file in info.siblings if file.lfs}
        self._heads: dict[str, bytes] = {}
        self._passing: Path | None = None

    def pass_through(self, folder: Path) -> None:
        """From now on weights that are not in the client's cache are downloaded to `folder`, and stay until they are
        let go."""
        self._passing = folder

    def cached(self, name: str) -> bool:
        """Whether the client's cache holds the file."""
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(self.name, name, revision=self.commit), str)

    def let_go(self, name: str) -> None:
        if self._passing:
            (self._passing / name).unlink(missing_ok=True)

    def files(self) -> Mapping[str, int]:
        return self._files

    def path(self, name: str) -> Path:
        return self._download(name)

    def strays(self, name: str) -> bool:
        return False

    def include(self, names: Iterable[str]) -> None:
        pass

    def fetch(self, name: str, advance: Advance) -> None:
        told = 0

        class Telling(tqdm):
            """The client's progress bar, kept from the screen: what it is told goes to ours."""

            def __init__(self, *positions: Any, **names: Any) -> None:
                super().__init__(*positions, **{**names, "disable": True})

            def update(self, count: float | None = 1) -> None:
                nonlocal told
                told += int(count or 0)
                advance(int(count or 0))

        self._download(name, Telling)
        advance(max(0, self._files[name] - told))

    def _download(self, name: str, bar: type[tqdm] | None = None) -> Path:
        passing = name.endswith((".safetensors", ".bin")) and not self.cached(name)
        with hub_client.hub_errors(f"{name} of {self.location}"):
            return Path(
                hub_client.api().hf_hub_download(
                    self.name,
                    check_name(name, self.name),
                    revision=self.commit,
                    local_dir=self._passing if passing else None,
                    tqdm_class=bar,
                )
            )

    def part(self, name: str, start: int, count: int) -> bytes:
        end = min(start + count, self._files[name])
        if end > len(self._heads.get(name, b"")):
            if start:
                return self._fetch_part(name, start, end)
            self._heads[name] = self._fetch_part(name, 0, max(end, _FIRST_BYTES))
        return self._heads[name][start:end]

    def _fetch_part(self, name: str, start: int, end: int) -> bytes:
        from huggingface_hub import get_session, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

        api = hub_client.api()
        url = hf_hub_url(self.name, name, revision=self.commit, endpoint=api.endpoint)
        headers = build_hf_headers(token=api.token, library_name=api.library_name)
        with hub_client.hub_errors(f"{name} of {self.location}"):
            ranged = {**headers, "Range": f"bytes={start}-{end - 1}"}
            with get_session().stream("GET", url, headers=ranged, follow_redirects=True) as response:
                hf_raise_for_status(response)
                # A server that knows no ranges sends the whole file: no more than was asked for is kept.
                skipped = 0 if response.status_code == _PARTIAL_CONTENT else start
                return _taken(response.iter_bytes(), skipped, end - start)


def _taken(parts: Iterator[bytes], skipped: int, count: int) -> bytes:
    taken, position = bytearray(), 0
    for part in parts:
        taken += part[max(0, skipped - position) :]
        position += len(part)
        if len(taken) >= count:
            break
    return bytes(taken[:count])


def open_source(model: str) -> Source:
    """The source that `model` names: an existing folder, or `owner/name[@revision]` on the Hub.

    Raises UsageError if it can be neither, MopeqError if it cannot be reached.
    """
    folder = Path(model).expanduser()
    if folder.is_file():
        raise UsageError(f"{model!r} is a file", "name the folder that holds the model")
    if model and folder.is_dir():
        return FolderSource(folder)
    if model.startswith((".", "/", "~")) or not _HUB_NAME.match(model):
        raise UsageError(f"{model!r} is neither a folder that exists nor owner/name[@revision]", "check the name")
    repo_id, _, revision = model.partition("@")
    return HubSource(repo_id, revision or None)


def companions(source: Source) -> list[str]:
    """The files that a published repo takes over: processor, tokenizer, chat template, generation config, licence.

    Raises MopeqError where one is a link to somewhere outside the source.
    """
    names = [name for name in source.files() if _COMPANION.fullmatch(name)]
    for name in names:
        if source.strays(name):
            raise MopeqError(
                f"{name} of {source.name} is a link to a file outside of it", "put the file itself in its place"
            )
    return names


def read_json(source: Source, name: str) -> dict[str, Any]:
    """A JSON object from the source. Raises MopeqError where it is missing or is not one."""
    if name not in source.files():
        raise MopeqError(f"{source.name} has no {name}", "name a folder or repo with a model in transformers' form")
    if source.files()[name] > _MAX_JSON_BYTES:
        raise MopeqError(f"{name} of {source.name} is too large to be one", "download or save it again")
    try:
        content = json.loads(source.path(name).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise MopeqError(f"{name} of {source.name} is not JSON: {error}", "download or save it again") from None
    if not isinstance(content, dict):
        raise MopeqError(f"{name} of {source.name} is not a JSON object", "download or save it again")
    return content


def card_metadata(text: str) -> dict[str, Any]:
    """The metadata at the head of a README; nothing where there is none or it cannot be read."""
    import yaml

    block = _FRONT_MATTER.match(text)
    try:
        data = yaml.safe_load(block[1]) if block else {}
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
