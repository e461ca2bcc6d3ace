"""Votes of blind mode: rows in SQLite on this machine, or in a dataset repo that MOPEQ_VOTES_REPO names.

A row has the time, the publication, a digest of the question, the vote, and which side was which; neither question nor
picture nor answer, and nothing of who voted.
"""

import json
import os
import sqlite3
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from huggingface_hub import CommitScheduler, HfApi, get_token, hf_hub_download
from publication import HERE

CHOICES = {"left": "Left is better", "right": "Right is better", "good": "Both are good", "bad": "Both are bad"}
SIDES = ("original", "quantized")
MINUTES = 5
"""Between commits to the dataset repo; a commit for each vote would soon be refused."""

PRIVACY = (
    "A vote is kept with its time, a digest of the question with its picture and settings, and which side was which. "
    "Question, picture, answers and who voted are not kept; from the digest a question can only be confirmed by "
    "somebody who guesses it."
)


@dataclass(frozen=True)
class Vote:
    """One vote; `left` is what stood on the left."""

    publication: str
    question: str
    vote: str
    left: str
    time: str

    @property
    def counted_as(self) -> str:
        """`original` or `quantized` where one was better, else `good` or `bad`."""
        right = SIDES[1 - SIDES.index(self.left)]
        return {"left": self.left, "right": right}.get(self.vote, self.vote)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Votes(Protocol):
    """Where votes are kept."""

    where: str

    def add(self, vote: Vote) -> None:
        """Keep a vote."""

    def totals(self, publication: str) -> Counter[str]:
        """How many votes on a publication count as what."""


class LocalVotes:
    """A table in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = "in a file of this Space"

    def add(self, vote: Vote) -> None:
        with closing(self._open()) as database, database:
            database.execute("INSERT INTO votes VALUES (:time, :publication, :question, :vote, :left)", asdict(vote))

    def totals(self, publication: str) -> Counter[str]:
        with closing(self._open()) as database:
            found = database.execute(
                "SELECT publication, question, vote, left_side, time FROM votes WHERE publication = ?", [publication]
            ).fetchall()
        return count((Vote(*row) for row in found), publication)

    def _open(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=30)
        database.execute(
            "CREATE TABLE IF NOT EXISTS votes (time TEXT, publication TEXT, question TEXT, vote TEXT, left_side TEXT)"
        )
        return database


class DatasetVotes:
    """JSON lines in a dataset repo; each run of the app has a file of its own there and appends to it."""

    def __init__(self, repo: str) -> None:
        self.where = f"in the dataset {repo}"
        self._mine: list[Vote] = []
        folder = Path(tempfile.mkdtemp(prefix="votes-"))
        self._file = folder / f"{uuid.uuid4().hex}.jsonl"
        self._earlier = list(_published_votes(repo))
        self.scheduler = CommitScheduler(
            repo_id=repo, repo_type="dataset", folder_path=folder, path_in_repo="votes", every=MINUTES
        )

    def add(self, vote: Vote) -> None:
        with self.scheduler.lock:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(vote)) + "\n")
            self._mine.append(vote)

    def totals(self, publication: str) -> Counter[str]:
        return count([*self._earlier, *self._mine], publication)


def open_votes() -> Votes:
    """The dataset repo of MOPEQ_VOTES_REPO, where there is a token that may write to it; else a file."""
    repo = os.environ.get("MOPEQ_VOTES_REPO")
    if repo and get_token():
        try:
            return DatasetVotes(repo)
        except Exception as error:
            print(f"votes cannot be kept in {repo}: {error}; they are kept in a file", file=sys.stderr, flush=True)
    elif repo:
        print(f"votes cannot be kept in {repo} without HF_TOKEN; they are kept in a file", file=sys.stderr, flush=True)
    return LocalVotes(_local_file())


def count(votes: Iterable[Vote], publication: str) -> Counter[str]:
    return Counter(vote.counted_as for vote in votes if vote.publication == publication)


def in_words(totals: Counter[str]) -> str:
    """The totals as one sentence."""
    of = totals.total()
    return (
        f"{of} {'vote' if of == 1 else 'votes'} so far: original better {totals['original']}, "
        f"quantized better {totals['quantized']}, both good {totals['good']}, both bad {totals['bad']}."
    )


def _local_file() -> Path:
    """In the folder MOPEQ_VOTES, in a Space's persistent storage, or beside the app's folder, which may be replaced."""
    if folder := os.environ.get("MOPEQ_VOTES"):
        return Path(folder).expanduser() / "votes.sqlite"
    storage = Path("/data")
    if os.environ.get("SPACE_ID") and storage.is_dir() and os.access(storage, os.W_OK):
        return storage / "votes.sqlite"
    return HERE.with_name(f"{HERE.name}.votes.sqlite")


def _published_votes(repo: str) -> Iterable[Vote]:
    api = HfApi()
    if not api.repo_exists(repo, repo_type="dataset"):
        return
    for name in api.list_repo_files(repo, repo_type="dataset"):
        if name.startswith("votes/") and name.endswith(".jsonl"):
            path = Path(hf_hub_download(repo, name, repo_type="dataset"))
            yield from _believed(path.read_text(encoding="utf-8").splitlines())


def _believed(lines: Iterable[str]) -> Iterable[Vote]:
    """Those lines that are votes; the repo may hold anything."""
    for line in lines:
        try:
            vote = Vote(**json.loads(line))
        except (ValueError, TypeError):
            continue
        if vote.vote in CHOICES and vote.left in SIDES:
            yield vote
