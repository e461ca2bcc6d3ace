"""A catalog on the Hub's machines: registered once as a scheduled job, or each stale entry a job."""

import json
from typing import Any

import pytest

from mopeq_hub import __version__
from mopeq_hub.catalog import read_catalog
from mopeq_hub.errors import MopeqError
from mopeq_hub.progress import Quiet
from mopeq_hub.republishing import publisher_named, republish
from tests.catalog.conftest import MODEL, MODEL_FILES, TO, run, write
from tests.hub import HubServer


def test_the_same_work_is_scheduled_on_the_hub_once(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = hub.token("alice")
    monkeypatch.setenv("HF_TOKEN", token)
    entries = [
        {"model": MODEL, "to": TO, "recipe": {"bits": [2, 4], "signal": "hessian"}},
        {"model": MODEL, "to": "alice/two", "space": False, "recipe": "mopeq"},
    ]
    status, out, error = run(capsys, write(*entries), "--on-hub", "--schedule", "@daily")
    (first,) = hub.schedules
    assert (status, error) == (0, "")
    assert out == f"scheduled @daily: catalog of alice, {first.id}\n"
    assert first.spec["command"] == [
        "uv", "run", "--with", f"mopeq-hub=={__version__}", "mopeq-hub", "republish"
    ]  # fmt: skip
    assert (first.schedule, first.concurrency) == ("@daily", False)
    assert (first.spec["flavor"], first.spec["timeoutSeconds"]) == ("cpu-upgrade", 6 * 3600)
    assert first.secret_is("HF_TOKEN", token)
    assert token not in json.dumps(first.spec) + out

    # What runs there finds the same entries, and nothing else is asked of it.
    monkeypatch.setenv("MOPEQ_CATALOG", first.spec["environment"]["MOPEQ_CATALOG"])
    hub.add_repo(MODEL, MODEL_FILES)
    status, out, _ = run(capsys, "--dry-run")
    assert out == f"stale {TO}: nothing is published there\nstale alice/two: nothing is published there\n"
    assert read_catalog(first.spec["environment"]["MOPEQ_CATALOG"]) == read_catalog(json.dumps(entries))

    status, out, _ = run(
        capsys,
        write(entries[0]),
        "--on-hub",
        "--schedule",
        "0 9 * * 1",
        "--flavor",
        "cpu-xl",
        "--timeout",
        "2d",
        "--json",
    )
    (second,) = hub.schedules
    assert json.loads(out)["replaced"] == [first.id]
    assert (second.schedule, second.spec["flavor"]) == ("0 9 * * 1", "cpu-xl")
    run(capsys, write(entries[1], name="other.yaml"), "--on-hub", "--schedule", "@weekly")
    assert [job.schedule for job in hub.schedules] == ["0 9 * * 1", "@weekly"], "another catalog has its own"


@pytest.mark.parametrize(
    ("entry", "options", "words"),
    [
        ({"model": "./model", "to": TO}, ["--schedule", "@daily"], "a job cannot read ./model"),
        ({"model": "a/b", "to": "./out"}, ["--schedule", "@daily"], "a job cannot write to the folder ./out"),
        ({"model": "a/b", "to": TO, "questions": "q.jsonl"}, ["--schedule", "@daily"], "a job cannot read q.jsonl"),
        ({"model": "a/b", "to": TO}, ["--schedule", "daily"], "--schedule 'daily' is not a schedule"),
        ({"model": "a/b", "to": TO}, ["--schedule", "@daily", "--timeout", "soon"], "--timeout 'soon' is not a time"),
        ({"model": "a/b", "to": TO}, ["--schedule", "@daily", "--flavor", "abacus"], "Invalid flavor: abacus"),
        ({"model": "a/b", "to": TO}, [], "--on-hub needs a --schedule"),
        (
            {"model": "a/b", "to": TO, "x": 1},
            ["--schedule", "@daily"],
            "1 of 1 entries are not in order",
        ),
    ],
)
def test_what_cannot_work_there_is_not_scheduled(
    entry: dict[str, Any], options: list[str], words: str, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run(capsys, write(entry), "--on-hub", *options)
    assert status in (1, 2)
    assert words in error.splitlines()[-1]
    assert hub.schedules == []


def test_an_engine_on_the_hub_does_each_stale_entry_as_a_job(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_repo(MODEL, MODEL_FILES)
    hub.plan_job(["one"])
    hub.plan_job(["two"], outcome="ERROR")
    entries = [{"model": MODEL, "to": f"alice/{name}"} for name in "ab"]
    status, out, error = run(capsys, write(*entries), "--engine", "jobs")
    first, second = hub.jobs
    assert status == 1
    assert out == "republished alice/a: nothing is published there\n"
    assert error.splitlines()[-1].startswith(f"error: entry 2, to alice/b: job {second.id} ended as ERROR;")
    (only,) = read_catalog(first.spec["environment"]["MOPEQ_CATALOG"])
    assert only.to == "alice/a"


def test_who_stops_following_a_job_stops_the_whole(hub: HubServer) -> None:
    hub.add_repo(MODEL, MODEL_FILES)
    hub.plan_job(["one"])

    class Stopped(Quiet):
        def say(self, text: str) -> None:
            if text == "one":
                raise KeyboardInterrupt

    catalog = write(*({"model": MODEL, "to": f"alice/{name}"} for name in "ab"))
    with (
        publisher_named("jobs", Stopped(), dry_run=False) as publisher,
        pytest.raises(MopeqError, match="not followed any longer, but goes on"),
    ):
        republish(catalog, [], publisher, lambda outcome: None)
    assert len(hub.jobs) == 1


def test_a_schedule_needs_a_token(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    status, _, error = run(capsys, write({"model": MODEL, "to": TO}), "--on-hub", "--schedule", "@daily")
    assert status == 1
    assert error.startswith("error: --on-hub needs a token and none is set;")


def test_a_hub_that_fails_while_an_older_schedule_goes_leaves_one_too_many(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    catalog = write({"model": MODEL, "to": TO})
    run(capsys, catalog, "--on-hub", "--schedule", "@daily")
    hub.fail_next("/api/scheduled-jobs/", status=500, times=20, method="DELETE", message="down")
    status, _, error = run(capsys, catalog, "--on-hub", "--schedule", "@weekly")
    assert status == 1
    assert error == "error: the Hub refused the schedule: down; try again later\n"
    assert [job.schedule for job in hub.schedules] == ["@daily", "@weekly"]
    hub.clear_faults()
    run(capsys, catalog, "--on-hub", "--schedule", "@weekly")
    assert [job.schedule for job in hub.schedules] == ["@weekly"]
