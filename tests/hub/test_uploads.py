"""What the server promises about uploads: LFS in one piece and in parts, atomic commits, refusals."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError
from huggingface_hub.utils import get_session

from . import HubServer, RequestRecord
from .state import QuotaStage

REPO = "alice/model"
WEIGHTS = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def repo(hub: HubServer) -> str:
    """The repository of this file's tests, and the sha of its first commit."""
    return hub.add_repo(REPO, {"config.json": b"{}", "data/a.txt": b"a", "data/b.txt": b"b"})


def send_commit(hub: HubServer, *operations: tuple[str, dict[str, object]]) -> int:
    """Commit without the client, which would refuse by itself what the server must refuse."""
    lines = [{"key": "header", "value": {"summary": "by hand"}}]
    lines += [{"key": key, "value": value} for key, value in operations]
    answer = get_session().post(
        f"{hub.endpoint}/api/models/{REPO}/commit/main",
        content="\n".join(map(json.dumps, lines)).encode(),
        headers={"Authorization": f"Bearer {hub.token('alice')}"},
    )
    return int(answer.status_code)


def puts(hub: HubServer) -> list[RequestRecord]:
    """The uploads of content so far."""
    return hub.requests("^/storage/uploads/", method="PUT")


class TestLfs:
    def test_a_folder_goes_up_and_only_what_must_goes_to_lfs(self, tmp_path: Path, hub: HubServer, api: HfApi) -> None:
        files = {
            "model.safetensors": WEIGHTS,
            "sub/tokenizer.json": b'{"a": "\xc3\xa9"}',
            "picture": b"\x89PNG\0" * 9,
            "empty.bin": b"",
        }
        for name, content in files.items():
            (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "folder" / name).write_bytes(content)
        made = api.upload_folder(repo_id=REPO, folder_path=tmp_path / "folder")
        assert made.oid == hub.head(REPO)
        assert hub.files(REPO).items() >= files.items()
        lfs = {path for path, entry in hub.entries(REPO).items() if entry.is_lfs}
        assert lfs == {"model.safetensors", "picture"}
        assert hub.traffic(REPO).uploaded == sum(map(len, files.values()))

    def test_a_file_beyond_the_regular_limit_goes_to_lfs(self, hub: HubServer, api: HfApi) -> None:
        hub.settings.regular_limit = 100
        api.upload_file(path_or_fileobj=b"x" * 101, path_in_repo="long.txt", repo_id=REPO)
        assert hub.entries(REPO)["long.txt"].is_lfs

    def test_gitattributes_of_the_repository_decide(self, hub: HubServer, api: HfApi) -> None:
        hub.commit(REPO, {".gitattributes": b"*.txt filter=lfs\n"})
        api.upload_file(path_or_fileobj=b"text", path_in_repo="x.txt", repo_id=REPO)
        api.upload_file(path_or_fileobj=b"text", path_in_repo="x.bin", repo_id=REPO)
        entries = hub.entries(REPO)
        assert (entries["x.txt"].is_lfs, entries["x.bin"].is_lfs) == (True, False)

    def test_big_files_go_up_in_parts(self, hub: HubServer, api: HfApi) -> None:
        hub.settings.multipart_threshold, hub.settings.part_size = 1000, 4096
        api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="model.safetensors", repo_id=REPO)
        assert len(puts(hub)) == 3
        assert [line.status for line in hub.requests("/complete$")] == [200]
        assert hub.files(REPO)["model.safetensors"] == WEIGHTS

    def test_what_is_there_is_not_asked_for_again(self, hub: HubServer, api: HfApi) -> None:
        operations = [CommitOperationAdd("a.bin", WEIGHTS)]
        api.preupload_lfs_files(REPO, operations)
        assert "a.bin" not in hub.files(REPO)
        api.create_commit(REPO, operations, commit_message="commit what was uploaded before")
        api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="b.bin", repo_id=REPO)
        assert len(puts(hub)) == 1
        assert hub.files(REPO)["b.bin"] == WEIGHTS

    def test_another_repository_does_not_share_its_objects(self, hub: HubServer, api: HfApi) -> None:
        hub.add_repo("bob/secret", {"x.bin": WEIGHTS}, private=True)
        oid = hashlib.sha256(WEIGHTS).hexdigest()
        assert (
            send_commit(hub, ("lfsFile", {"path": "x.bin", "algo": "sha256", "oid": oid, "size": len(WEIGHTS)})) == 400
        )

    @pytest.mark.parametrize("parts", [False, True])
    def test_content_that_is_not_what_was_announced_is_refused(self, hub: HubServer, api: HfApi, parts: bool) -> None:
        if parts:
            hub.settings.multipart_threshold, hub.settings.part_size = 1000, 4096
        operation = CommitOperationAdd("x.bin", WEIGHTS)
        operation.upload_info.sha256 = hashlib.sha256(b"something else").digest()
        with pytest.raises(RuntimeError, match=r"x\.bin") as failed:
            api.create_commit(REPO, [operation], commit_message="spoiled")
        assert isinstance(failed.value.__cause__, BadRequestError)
        assert "BadDigest" in str(failed.value.__cause__)
        assert "x.bin" not in hub.files(REPO)

    def test_a_file_that_shrinks_between_hashing_and_upload_is_refused(
        self, tmp_path: Path, hub: HubServer, api: HfApi
    ) -> None:
        source = tmp_path / "x.bin"
        source.write_bytes(WEIGHTS)
        operation = CommitOperationAdd("x.bin", source)
        assert operation.upload_info.sha256
        source.write_bytes(WEIGHTS[:-1])
        with pytest.raises(RuntimeError):
            api.create_commit(REPO, [operation], commit_message="spoiled")
        assert "x.bin" not in hub.files(REPO)

    def test_objects_that_were_never_uploaded_cannot_be_committed(self, hub: HubServer, repo: str) -> None:
        assert send_commit(hub, ("lfsFile", {"path": "x.bin", "oid": "0" * 64, "size": 5})) == 400
        assert hub.head(REPO) == repo


class TestCommits:
    def test_add_copy_and_delete_in_one(self, hub: HubServer, api: HfApi, repo: str) -> None:
        hub.commit(REPO, {"x.bin": WEIGHTS})
        made = api.create_commit(
            REPO,
            [
                CommitOperationAdd("new.txt", b"new"),
                CommitOperationCopy("x.bin", "y.bin"),
                CommitOperationDelete("config.json"),
                CommitOperationDelete("data/"),
            ],
            commit_message="title",
            commit_description="and more",
        )
        assert hub.files(REPO) == {"new.txt": b"new", "x.bin": WEIGHTS, "y.bin": WEIGHTS}
        newest = api.list_repo_commits(REPO)[0]
        assert (newest.commit_id, newest.title, newest.message) == (made.oid, "title", "and more")
        assert newest.authors == ["alice"]

    def test_all_or_nothing(self, hub: HubServer, api: HfApi, repo: str) -> None:
        add, delete = CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("missing.txt")
        with pytest.raises(EntryNotFoundError, match="A file with this name doesn't exist"):
            api.create_commit(REPO, [add, delete], commit_message="half")
        assert hub.head(REPO) == repo

    def test_nothing_changed_means_no_commit(self, hub: HubServer, api: HfApi, repo: str) -> None:
        made = api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=REPO)
        assert made.oid == hub.head(REPO) == repo
        hub.commit(REPO, {"x.bin": WEIGHTS})
        api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="x.bin", repo_id=REPO)
        assert hub.requests("/commit/") == []

    def test_the_expected_parent_is_checked(self, hub: HubServer, api: HfApi, repo: str) -> None:
        def add(content: bytes, parent: str) -> str:
            return api.upload_file(
                path_or_fileobj=content, path_in_repo="n.txt", repo_id=REPO, parent_commit=parent
            ).oid

        second = add(b"1", repo)
        with pytest.raises(HfHubHTTPError, match="A commit has happened since") as refused:
            add(b"2", repo)
        assert refused.value.response.status_code == 412
        third = add(b"3", second[:7])
        assert hub.head(REPO) == third

    def test_made_at_the_same_time_are_all_kept(self, hub: HubServer, api: HfApi) -> None:
        def upload(number: int) -> None:
            api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo=f"{number}.bin", repo_id=REPO)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(upload, range(8)))
        assert hub.files(REPO).keys() >= {f"{number}.bin" for number in range(8)}
        assert len(hub.history(REPO)) == 9

    def test_go_to_a_branch_that_exists(self, hub: HubServer, api: HfApi, repo: str) -> None:
        api.create_branch(REPO, branch="dev")
        api.upload_file(path_or_fileobj=b"1", path_in_repo="n.txt", repo_id=REPO, revision="dev")
        assert "n.txt" in hub.files(REPO, "dev")
        assert hub.head(REPO) == repo
        for revision in ("missing", repo):
            with pytest.raises(RevisionNotFoundError):
                api.upload_file(path_or_fileobj=b"1", path_in_repo="n.txt", repo_id=REPO, revision=revision)

    def test_ignored_files_stay_away(self, hub: HubServer, api: HfApi) -> None:
        hub.commit(REPO, {".gitignore": b"*.log\n!keep.log\nbuild/\n"})
        names = ["a.log", "keep.log", "build/x.bin", "src/x.txt"]
        api.create_commit(REPO, [CommitOperationAdd(name, b"x") for name in names], commit_message="some")
        assert {name for name in names if name in hub.files(REPO)} == {"keep.log", "src/x.txt"}

    @pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a//b", "./x", ".git/config", "", "a\\b"])
    def test_paths_stay_inside_the_repository(self, hub: HubServer, repo: str, path: str) -> None:
        assert send_commit(hub, ("file", {"path": path, "content": "", "encoding": "base64"})) == 400
        assert hub.head(REPO) == repo

    @pytest.mark.parametrize(
        "operation",
        [
            ("file", {"path": "config.json/x", "content": "", "encoding": "base64"}),
            ("file", {"path": "x", "content": "no base64!", "encoding": "base64"}),
            ("surprise", {"path": "x"}),
        ],
    )
    def test_what_makes_no_sense_is_refused(
        self, hub: HubServer, repo: str, operation: tuple[str, dict[str, object]]
    ) -> None:
        assert send_commit(hub, operation) == 400
        assert hub.head(REPO) == repo

    def test_pull_requests_are_refused_clearly(self, api: HfApi) -> None:
        with pytest.raises(BadRequestError, match="Pull requests are not supported"):
            api.upload_file(path_or_fileobj=b"1", path_in_repo="n.txt", repo_id=REPO, create_pr=True)


@pytest.mark.parametrize("code", [402, 403])
@pytest.mark.parametrize(("stage", "uploads"), [("preupload", 0), ("commit", 1)])
def test_a_full_account_takes_no_more(
    hub: HubServer, api: HfApi, repo: str, code: Literal[402, 403], stage: QuotaStage, uploads: int
) -> None:
    hub.set_quota("alice", 1000, status=code, stage=stage)
    with pytest.raises(HfHubHTTPError, match="Storage limit reached") as refused:
        api.upload_file(path_or_fileobj=WEIGHTS, path_in_repo="x.bin", repo_id=REPO)
    assert refused.value.response.status_code == code
    assert (len(puts(hub)), hub.head(REPO)) == (uploads, repo)
