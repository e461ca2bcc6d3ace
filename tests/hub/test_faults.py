"""What the server promises about failures on demand, and what the real client makes of them."""

from __future__ import annotations

import time
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import get_session

from . import HubServer

REPO = "alice/model"
WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture(autouse=True)
def repo(hub: HubServer) -> str:
    """The repository of this file's tests, and the sha of its first commit."""
    return hub.add_repo(REPO, {"model.safetensors": WEIGHTS})


def test_a_status_is_answered_as_often_as_planned(hub: HubServer, api: HfApi) -> None:
    hub.fail_next(r"/api/models/alice/model$", status=503, times=2, message="down for repair")
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="down for repair"):
            api.model_info(REPO)
    assert api.model_info(REPO).id == REPO
    assert [line.status for line in hub.requests()] == [503, 503, 200]


def test_a_planned_failure_waits_for_its_method_and_path(hub: HubServer, api: HfApi) -> None:
    hub.fail_next("/alice/other", status=500)
    hub.fail_next("/alice/model", status=500, method="DELETE")
    assert api.model_info(REPO).id == REPO
    assert hub.pending_faults == 2
    hub.clear_faults()
    assert hub.pending_faults == 0


def test_the_client_resumes_a_download_that_breaks_off(hub: HubServer, api: HfApi) -> None:
    # The client keeps what it received in steps of 10 MiB, so a smaller file would begin anew.
    content = WEIGHTS * 12
    hub.commit(REPO, {"model.safetensors": content})
    hub.fail_next("^/storage/.*safetensors", after_bytes=11 * 1024**2, method="GET")
    assert Path(api.hf_hub_download(REPO, "model.safetensors")).read_bytes() == content
    assert [line.status for line in hub.requests("^/storage/")] == [None, 206]
    assert hub.traffic(REPO).downloaded == len(content) + 1024**2


def test_the_client_repeats_an_upload_that_breaks_off(hub: HubServer, api: HfApi) -> None:
    hub.fail_next("^/storage/uploads/", after_bytes=1000)
    api.upload_file(path_or_fileobj=WEIGHTS[::-1], path_in_repo="x.bin", repo_id=REPO)
    assert [line.status for line in hub.requests("^/storage/uploads/")] == [None, 200]
    assert hub.files(REPO)["x.bin"] == WEIGHTS[::-1]


def test_a_commit_that_breaks_off_is_not_made(hub: HubServer, api: HfApi, repo: str) -> None:
    hub.fail_next("/commit/", after_bytes=10)
    with pytest.raises(httpx2.TransportError):
        api.upload_file(path_or_fileobj=b"1", path_in_repo="n.txt", repo_id=REPO)
    assert hub.head(REPO) == repo


def test_a_commit_whose_answer_is_lost_is_made(hub: HubServer, api: HfApi, repo: str) -> None:
    hub.fail_next("/commit/", after_bytes=0, side="response")
    with pytest.raises(httpx2.TransportError):
        api.upload_file(path_or_fileobj=b"1", path_in_repo="n.txt", repo_id=REPO)
    assert hub.history(REPO)[1].oid == repo
    assert hub.files(REPO)["n.txt"] == b"1"


def test_a_connection_can_end_without_an_answer(hub: HubServer, api: HfApi) -> None:
    hub.fail_next("/api/", status=None)
    with pytest.raises(httpx2.TransportError):
        api.model_info(REPO)
    assert hub.requests()[-1].status is None


def test_a_broken_upload_is_reported_when_the_server_insists(hub: HubServer, api: HfApi, repo: str) -> None:
    hub.fail_next("^/storage/uploads/", status=403, message="AccessDenied")
    with pytest.raises(RuntimeError, match=r"x\.bin") as failed:
        api.upload_file(path_or_fileobj=WEIGHTS[::-1], path_in_repo="x.bin", repo_id=REPO)
    assert "AccessDenied" in str(failed.value.__cause__)
    assert hub.head(REPO) == repo


def test_latency_slows_every_answer(hub: HubServer, api: HfApi) -> None:
    hub.settings.latency = 0.1
    before = time.monotonic()
    api.model_info(REPO)
    assert time.monotonic() - before >= 0.1


def test_an_unknown_page_and_a_wrong_method_are_not_found(hub: HubServer) -> None:
    assert get_session().get(f"{hub.endpoint}/api/nothing/here/to/see").status_code == 404
    assert get_session().delete(f"{hub.endpoint}/api/whoami-v2").status_code == 404


def test_bodies_of_unknown_length_are_taken(hub: HubServer, api: HfApi) -> None:
    answer = get_session().post(
        f"{hub.endpoint}/api/validate-yaml", content=iter([b'{"content": "---\\nlicense:', b' mit\\n---\\n"}'])
    )
    assert answer.request.headers["Transfer-Encoding"] == "chunked"
    assert answer.json() == {"errors": [], "warnings": []}
