"""What the server promises to the real client: accounts, repositories, history, downloads, cards and spaces."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, RepoFile, RepoFolder, SpaceHardware, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from . import HubServer, Settings, client_environment
from .repositories import RepoKind

WEIGHTS = bytes(range(256)) * 40


def status(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    """The HTTP status behind an exception of the client."""
    return error.value.response.status_code


class TestAccounts:
    def test_a_token_tells_who_bears_it_and_what_it_may_do(self, hub: HubServer) -> None:
        who = HfApi(endpoint=hub.endpoint, token=hub.token("bob", role="read", orgs=["acme"])).whoami()
        assert who["name"] == "bob"
        assert [org["name"] for org in who["orgs"]] == ["acme"]
        assert who["auth"]["accessToken"]["role"] == "read"

    def test_an_unknown_token_is_refused_even_for_public_things(self, hub: HubServer, api: HfApi) -> None:
        hub.add_repo("alice/public", {"a.txt": b"a"})
        stranger = HfApi(endpoint=hub.endpoint, token="hf_unknown")
        with pytest.raises(HfHubHTTPError, match="Invalid user token") as refused:
            stranger.whoami()
        assert status(refused) == 401
        with pytest.raises(HfHubHTTPError, match="Invalid credentials") as refused:
            stranger.model_info("alice/public")
        assert not isinstance(refused.value, RepositoryNotFoundError)

    def test_a_revoked_token_is_unknown(self, hub: HubServer) -> None:
        token = hub.token("alice")
        hub.revoke(token)
        with pytest.raises(HfHubHTTPError):
            HfApi(endpoint=hub.endpoint, token=token).whoami()

    def test_a_read_token_may_read_and_not_write(self, hub: HubServer) -> None:
        hub.add_repo("alice/secret", {"a.txt": b"a"}, private=True)
        reader = HfApi(endpoint=hub.endpoint, token=hub.token("alice", role="read"))
        assert reader.model_info("alice/secret").private
        for attempt in (
            lambda: reader.create_repo("alice/other"),
            lambda: reader.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id="alice/secret"),
            lambda: reader.create_tag("alice/secret", tag="v1"),
            lambda: reader.delete_repo("alice/secret"),
        ):
            with pytest.raises(HfHubHTTPError, match="write token") as refused:
                attempt()
            assert status(refused) == 403

    def test_nobody_writes_in_the_namespace_of_another(self, hub: HubServer) -> None:
        hub.add_repo("alice/model", {"a.txt": b"a"})
        bob = HfApi(endpoint=hub.endpoint, token=hub.token("bob"))
        with pytest.raises(HfHubHTTPError, match="rights") as refused:
            bob.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id="alice/model")
        assert status(refused) == 403
        with pytest.raises(HfHubHTTPError, match="rights"):
            bob.create_repo("acme/model")
        member = HfApi(endpoint=hub.endpoint, token=hub.token("bob", orgs=["acme"]))
        assert member.create_repo("acme/model").repo_id == "acme/model"

    def test_the_log_tells_of_authorization_without_the_token(self, hub: HubServer, api: HfApi) -> None:
        token = hub.token("carol")
        HfApi(endpoint=hub.endpoint, token=token).whoami()
        (line,) = hub.requests("whoami", method="GET")
        assert line.authenticated
        assert line.status == 200
        assert token not in repr(hub.requests())


class TestRepositories:
    @pytest.mark.parametrize("kind", ["model", "dataset", "space"])
    def test_are_made_described_and_deleted(self, hub: HubServer, api: HfApi, kind: RepoKind) -> None:
        sdk = "gradio" if kind == "space" else None
        url = api.create_repo("alice/new", repo_type=kind, space_sdk=sdk)
        assert (url.repo_id, url.repo_type) == ("alice/new", kind)
        assert api.repo_info("alice/new", repo_type=kind).sha == hub.head("alice/new", repo_type=kind)
        assert ".gitattributes" in api.list_repo_files("alice/new", repo_type=kind)
        api.delete_repo("alice/new", repo_type=kind)
        assert not api.repo_exists("alice/new", repo_type=kind)
        api.delete_repo("alice/new", repo_type=kind, missing_ok=True)
        with pytest.raises(RepositoryNotFoundError):
            api.delete_repo("alice/new", repo_type=kind)

    def test_exist_once(self, api: HfApi) -> None:
        api.create_repo("alice/model")
        with pytest.raises(HfHubHTTPError) as refused:
            api.create_repo("alice/model")
        assert status(refused) == 409
        assert api.create_repo("alice/model", exist_ok=True).repo_id == "alice/model"

    def test_a_space_needs_an_sdk_that_exists(self, hub: HubServer, api: HfApi) -> None:
        payload = {"name": "space", "organization": "alice", "type": "space", "sdk": "cobol"}
        headers = {"Authorization": f"Bearer {hub.token('alice')}"}
        answer = get_session().post(f"{hub.endpoint}/api/repos/create", json=payload, headers=headers)
        assert answer.status_code == 400
        assert not hub.has_repo("alice/space", "space")

    def test_a_private_one_is_as_good_as_missing(self, hub: HubServer, api: HfApi, anonymous: HfApi) -> None:
        api.create_repo("alice/secret", private=True)
        bob = HfApi(endpoint=hub.endpoint, token=hub.token("bob"))
        assert api.model_info("alice/secret").private
        for stranger in (anonymous, bob):
            for repo_id in ("alice/secret", "alice/missing"):
                with pytest.raises(RepositoryNotFoundError):
                    stranger.model_info(repo_id)
                with pytest.raises(RepositoryNotFoundError):
                    stranger.hf_hub_download(repo_id, "config.json")
            assert "alice/secret" not in [model.id for model in stranger.list_models(author="alice")]
        api.update_repo_settings("alice/secret", private=False)
        assert anonymous.model_info("alice/secret").private is False

    def test_a_gated_one_shows_itself_but_not_its_files(self, hub: HubServer, api: HfApi, anonymous: HfApi) -> None:
        hub.add_repo("alice/gated", {"config.json": b"{}"})
        api.update_repo_settings("alice/gated", gated="manual")
        bob = HfApi(endpoint=hub.endpoint, token=hub.token("bob"))
        assert anonymous.model_info("alice/gated").gated == "manual"
        for stranger in (anonymous, bob):
            with pytest.raises(GatedRepoError):
                stranger.hf_hub_download("alice/gated", "config.json")
        api.grant_access("alice/gated", "bob")
        assert Path(bob.hf_hub_download("alice/gated", "config.json")).read_bytes() == b"{}"

    def test_move_and_leave_a_way_to_the_new_name(self, hub: HubServer, api: HfApi) -> None:
        sha = hub.add_repo("alice/old", {"config.json": b"{}"})
        api.move_repo("alice/old", "alice/new")
        assert api.model_info("alice/new").sha == sha
        assert api.model_info("alice/old").id == "alice/new"
        assert Path(api.hf_hub_download("alice/old", "config.json")).read_bytes() == b"{}"

    def test_describe_their_files_and_their_card(self, hub: HubServer, api: HfApi) -> None:
        card = b"---\nlicense: mit\npipeline_tag: image-text-to-text\nbase_model: acme/base\n---\n# Model\n"
        hub.add_repo("alice/model", {"README.md": card, "model.safetensors": WEIGHTS})
        info = api.model_info("alice/model", files_metadata=True)
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
        weights = siblings["model.safetensors"]
        assert weights.lfs is not None
        assert (weights.size, weights.lfs.sha256) == (len(WEIGHTS), hashlib.sha256(WEIGHTS).hexdigest())
        assert siblings["README.md"].lfs is None
        assert info.card_data is not None
        assert info.card_data.license == "mit"
        assert info.pipeline_tag == "image-text-to-text"
        assert "base_model:acme/base" in (info.tags or [])
        assert api.model_info("alice/model", expand=["gated"]).sha is None


class TestHistory:
    def test_commit_shas_follow_from_content_message_and_parent(self, hub: HubServer) -> None:
        shas = [hub.add_repo(f"alice/{name}", {"a.txt": b"a"}) for name in ("one", "two")]
        assert shas[0] == shas[1]
        assert len(shas[0]) == 40
        assert hub.commit("alice/one", {"a.txt": b"b"}) == hub.commit("alice/two", {"a.txt": b"b"})
        assert hub.commit("alice/one", {"b.txt": b"b"}) != hub.commit("alice/two", {"c.txt": b"b"})

    def test_revisions_are_branches_tags_and_shas(self, hub: HubServer, api: HfApi) -> None:
        first = hub.add_repo("alice/model", {"a.txt": b"one"})
        api.create_tag("alice/model", tag="v1")
        api.create_branch("alice/model", branch="feature/x")
        second = hub.commit("alice/model", {"a.txt": b"two"})
        for revision, sha in {"main": second, "v1": first, "feature/x": first, first: first, second: second}.items():
            assert api.model_info("alice/model", revision=revision).sha == sha
            path = api.hf_hub_download("alice/model", "a.txt", revision=revision)
            assert Path(path).read_bytes() == (b"one" if sha == first else b"two")
        refs = api.list_repo_refs("alice/model")
        assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "feature/x": first}
        assert {ref.ref: ref.target_commit for ref in refs.tags} == {"refs/tags/v1": first}
        assert [commit.commit_id for commit in api.list_repo_commits("alice/model")] == [second, first]

    def test_tags_and_branches_are_made_once(self, hub: HubServer, api: HfApi) -> None:
        hub.add_repo("alice/model", {"a.txt": b"one"})
        api.create_tag("alice/model", tag="v1")
        api.create_branch("alice/model", branch="dev")
        with pytest.raises(HfHubHTTPError) as refused:
            api.create_tag("alice/model", tag="v1")
        assert status(refused) == 409
        with pytest.raises(HfHubHTTPError) as refused:
            api.create_branch("alice/model", branch="dev")
        assert status(refused) == 409
        api.create_tag("alice/model", tag="v1", exist_ok=True)
        api.create_branch("alice/model", branch="dev", exist_ok=True)
        api.delete_tag("alice/model", tag="v1")
        api.delete_branch("alice/model", branch="dev")
        assert (hub.tags("alice/model"), list(hub.branches("alice/model"))) == ({}, ["main"])
        with pytest.raises(RevisionNotFoundError):
            api.delete_tag("alice/model", tag="v1")
        with pytest.raises(RevisionNotFoundError):
            api.create_tag("alice/model", tag="v2", revision="nowhere")

    def test_trees_are_listed_page_by_page(self, hub: HubServer, api: HfApi) -> None:
        hub.settings.tree_page_size = 3
        files = {f"data/{number}.txt": b"x" for number in range(8)} | {"model.safetensors": WEIGHTS}
        hub.add_repo("alice/model", files)
        listed = list(api.list_repo_tree("alice/model", recursive=True))
        assert sorted(item.path for item in listed if isinstance(item, RepoFile)) == sorted(files)
        assert [item.path for item in listed if isinstance(item, RepoFolder)] == ["data"]
        assert len(hub.requests("/tree/")) == 4
        top = list(api.list_repo_tree("alice/model", expand=True))
        assert [item.path for item in top] == ["data", "model.safetensors"]
        inside = list(api.list_repo_tree("alice/model", path_in_repo="data"))
        assert len(inside) == 8
        with pytest.raises(EntryNotFoundError):
            list(api.list_repo_tree("alice/model", path_in_repo="nowhere"))

    def test_single_paths_can_be_asked_for(self, hub: HubServer, api: HfApi) -> None:
        hub.add_repo("alice/model", {"data/a.txt": b"abc", "model.safetensors": WEIGHTS})
        found = api.get_paths_info("alice/model", ["data", "data/a.txt", "model.safetensors", "missing"])
        assert [item.path for item in found] == ["data", "data/a.txt", "model.safetensors"]
        weights = found[2]
        assert isinstance(weights, RepoFile)
        assert weights.lfs is not None
        assert weights.lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()


class TestDownloads:
    @pytest.mark.parametrize("redirect", [True, False])
    def test_files_and_snapshots(self, tmp_path: Path, hub: HubServer, redirect: bool) -> None:
        hub.settings.lfs_redirect = redirect
        files = {"config.json": b"{}", "sub dir/model.safetensors": WEIGHTS, "empty.txt": b""}
        sha = hub.add_repo("alice/model", files, private=True)
        cache, token = tmp_path / "cache", hub.token("alice")
        weights = hf_hub_download(
            "alice/model", "sub dir/model.safetensors", endpoint=hub.endpoint, token=token, cache_dir=cache
        )
        assert Path(weights).read_bytes() == WEIGHTS
        folder = Path(snapshot_download("alice/model", endpoint=hub.endpoint, token=token, cache_dir=cache))
        assert folder.name == sha
        assert {name: (folder / name).read_bytes() for name in files} == files
        assert hub.traffic("alice/model").downloaded == sum(map(len, files.values()))
        # The token stays with the Hub: the storage host must not get it.
        assert not any(line.authenticated for line in hub.requests("^/storage/"))
        assert bool(hub.requests("^/storage/")) is redirect

    def test_what_is_missing_has_its_own_error(self, hub: HubServer, api: HfApi) -> None:
        hub.add_repo("alice/model", {"config.json": b"{}"})
        with pytest.raises(EntryNotFoundError):
            api.hf_hub_download("alice/model", "missing.json")
        with pytest.raises(RevisionNotFoundError):
            api.hf_hub_download("alice/model", "config.json", revision="missing")
        with pytest.raises(RevisionNotFoundError):
            api.snapshot_download("alice/model", revision="0" * 40)
        with pytest.raises(RepositoryNotFoundError):
            api.snapshot_download("alice/missing")
        assert not api.file_exists("alice/model", "missing.json")

    @pytest.mark.parametrize(
        ("header", "expected"),
        [("bytes=0-3", slice(0, 4)), ("bytes=10-", slice(10, None)), ("bytes=-5", slice(-5, None))],
    )
    def test_ranges(self, hub: HubServer, header: str, expected: slice) -> None:
        hub.add_repo("alice/model", {"model.safetensors": WEIGHTS})
        url = f"{hub.endpoint}/alice/model/resolve/main/model.safetensors"
        answer = get_session().get(url, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, WEIGHTS[expected])
        beyond = get_session().get(url, headers={"Range": f"bytes={len(WEIGHTS)}-"})
        assert beyond.status_code == 416

    def test_raw_gives_the_pointer_of_an_lfs_file(self, hub: HubServer) -> None:
        hub.add_repo("alice/data", {"x.bin": WEIGHTS, "x.txt": b"text"}, repo_type="dataset")
        raw = f"{hub.endpoint}/datasets/alice/data/raw/main"
        assert f"oid sha256:{hashlib.sha256(WEIGHTS).hexdigest()}" in get_session().get(f"{raw}/x.bin").text
        assert get_session().get(f"{raw}/x.txt").content == b"text"

    def test_storage_addresses_cannot_be_invented(self, hub: HubServer) -> None:
        hub.add_repo("alice/secret", {"x.bin": WEIGHTS}, private=True)
        address = f"/storage/models/alice/secret/{hashlib.sha256(WEIGHTS).hexdigest()}/x.bin"
        for query in ("", "?signature=00"):
            assert get_session().get(hub.storage_endpoint + address + query).status_code == 403

    def test_safetensors_headers_are_read_by_ranges(
        self, hub: HubServer, api: HfApi, safetensors: Callable[[str], bytes]
    ) -> None:
        shards = {f"model-0000{n}-of-00002.safetensors": safetensors(f"layer{n}") for n in (1, 2)}
        index = {"metadata": {}, "weight_map": {f"layer{n}": name for n, name in enumerate(shards, start=1)}}
        hub.add_repo("alice/sharded", {**shards, "model.safetensors.index.json": json.dumps(index).encode()})
        hub.add_repo("alice/single", {"model.safetensors": safetensors("weight")})
        sharded = api.get_safetensors_metadata("alice/sharded")
        assert sharded.sharded
        assert sharded.weight_map == index["weight_map"]
        assert list(api.get_safetensors_metadata("alice/single").weight_map) == ["weight"]


class TestCards:
    def test_a_good_card_passes(self, hub: HubServer) -> None:
        ModelCard("---\nlicense: other\nlicense_name: acme\nbase_model:\n- acme/base\ntags:\n- moe\n---\n").validate()

    @pytest.mark.parametrize(
        ("metadata", "message"),
        [
            ("license: mine", "license"),
            ("license: other", "license_name"),
            ("tags: moe", "tags"),
            ("pipeline_tag: 3", "pipeline_tag"),
            ("base_model: /data/base", "base_model"),
            ("language: english", "language"),
            ("base_model_relation: cousin", "base_model_relation"),
            ("model-index: x", "model-index"),
            ("model-index:\n- name: m\n  results:\n  - task:\n      type: t", "dataset"),
            ("license: [", "YAML"),
        ],
    )
    def test_a_bad_card_is_refused_everywhere(self, hub: HubServer, api: HfApi, metadata: str, message: str) -> None:
        content = f"---\n{metadata}\n---\n# Model\n"
        validation = {"repoType": "model", "content": content}
        answer = get_session().post(f"{hub.endpoint}/api/validate-yaml", json=validation)
        assert answer.status_code == 400
        assert message in answer.json()["errors"][0]["message"]
        before = hub.add_repo("alice/model", {"a.txt": b"a"})
        with pytest.raises(ValueError, match="Invalid metadata"):
            api.upload_file(path_or_fileobj=content.encode(), path_in_repo="README.md", repo_id="alice/model")
        assert hub.head("alice/model") == before

    def test_an_unknown_pipeline_tag_is_a_warning(self, hub: HubServer, api: HfApi) -> None:
        hub.add_repo("alice/model", {"a.txt": b"a"})
        card = b"---\npipeline_tag: mind-reading\n---\n"
        with pytest.warns(UserWarning, match="official list"):
            api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="alice/model")
        assert hub.files("alice/model")["README.md"] == card


class TestSpaces:
    def test_have_a_machine_and_variables(self, api: HfApi) -> None:
        api.create_repo("alice/demo", repo_type="space", space_sdk="gradio")
        assert api.get_space_runtime("alice/demo").stage == "NO_APP_FILE"
        api.upload_file(path_or_fileobj=b"pass\n", path_in_repo="app.py", repo_id="alice/demo", repo_type="space")
        assert api.get_space_runtime("alice/demo").stage == "RUNNING"
        runtime = api.request_space_hardware("alice/demo", SpaceHardware.T4_SMALL, sleep_time=300)
        assert (runtime.requested_hardware, runtime.sleep_time) == ("t4-small", 300)
        api.add_space_variable("alice/demo", "MODEL", "alice/model", description="what to show")
        assert api.get_space_variables("alice/demo")["MODEL"].value == "alice/model"
        assert api.delete_space_variable("alice/demo", "MODEL") == {}
        assert api.space_info("alice/demo").sdk == "gradio"

    def test_keep_their_secrets(self, hub: HubServer, api: HfApi) -> None:
        api.create_repo("alice/demo", repo_type="space", space_sdk="docker")
        api.add_space_secret("alice/demo", "KEY", "hidden-value", description="for the demo")
        assert api.get_space_secrets("alice/demo")["KEY"].description == "for the demo"
        headers = {"Authorization": f"Bearer {hub.token('alice')}"}
        assert (
            "hidden-value"
            not in get_session().get(f"{hub.endpoint}/api/spaces/alice/demo/secrets", headers=headers).text
        )
        assert hub.secret_is("alice/demo", "KEY", "hidden-value")
        assert not hub.secret_is("alice/demo", "KEY", "another")
        with pytest.raises(HfHubHTTPError):
            HfApi(endpoint=hub.endpoint, token=hub.token("bob")).get_space_secrets("alice/demo")


def test_a_subprocess_needs_only_the_environment(tmp_path: Path) -> None:
    script = (
        "from huggingface_hub import HfApi, hf_hub_download\n"
        "api = HfApi()\n"
        "api.create_repo('alice/model')\n"
        "api.upload_file(path_or_fileobj=b'\\0' * 64, path_in_repo='x.bin', repo_id='alice/model')\n"
        "print(open(hf_hub_download('alice/model', 'x.bin'), 'rb').read() == b'\\0' * 64)\n"
    )
    with HubServer(tmp_path / "server", Settings(latency=0.001)) as hub:
        environment = client_environment(hub, tmp_path / "home", token=hub.token("alice"))
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
        )
        assert done.stdout == "True\n", done.stderr
        assert hub.files("alice/model")["x.bin"] == bytes(64)
