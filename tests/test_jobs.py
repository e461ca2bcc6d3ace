"""The same command as a job on the Hub: what is submitted, how it is followed, and what is refused before."""

import json
from pathlib import Path
from typing import Any

import pytest

from mopeq_hub import __version__, cli, jobs
from tests.hub import HubServer

MODEL = "alice/shapes"


@pytest.fixture
def hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    monkeypatch.setenv("HF_TOKEN", hub.token("alice"))
    monkeypatch.chdir(tmp_path)
    return hub


@pytest.fixture
def token(hub: HubServer) -> str:
    import os

    return os.environ["HF_TOKEN"]


def run(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[Any, str, str]:
    """Exit status, standard output and standard error of a publish as a job."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main(["publish", "--engine", "jobs", *options])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def test_the_same_command_is_submitted_without_what_is_about_the_engine(
    hub: HubServer, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.plan_job(["quantizing", "published"])
    options = ["--bits", "2,4", "--asymmetric", "--no-space", "--private", "--compare", "--seed", "7"]
    options += ["--budget", "2.5bpw,3.0bpw"]
    status, out, _ = run(capsys, MODEL, "--to", "alice/out", "--flavor", "cpu-xl", "--timeout", "90m", *options)
    (job,) = hub.jobs
    assert status == 0
    command = ["uv", "run", "--with", f"mopeq-hub=={__version__}", "mopeq-hub", "publish", MODEL, "--to", "alice/out"]
    assert job.spec["command"][: len(command)] == command
    given = job.spec["command"][len(command) :]
    assert sorted(given) == sorted(options)
    assert given[given.index("--bits") + 1] == "2,4"
    assert (job.spec["flavor"], job.spec["timeoutSeconds"]) == ("cpu-xl", 90 * 60)
    assert job.secret_is("HF_TOKEN", token)
    assert token not in json.dumps(job.spec)
    lines = out.splitlines()
    assert lines == [
        f"job {job.id}: {hub.endpoint}/jobs/alice/{job.id}",
        "quantizing",
        "published",
        f"job {job.id} is done",
    ]


def test_a_recipe_in_a_file_travels_by_what_it_says(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_text("bits: 2,4\nscope: layer\n")
    assert run(capsys, MODEL, "--recipe", "recipe.yaml")[0] == 0
    command = hub.jobs[0].spec["command"]
    assert json.loads(command[command.index("--recipe") + 1]) == {"bits": [2, 4], "scope": "layer"}


def test_without_choices_it_has_a_machine_a_limit_and_a_destination(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, f"{MODEL}@main")[0] == 0
    (job,) = hub.jobs
    assert job.spec["command"][4:] == ["mopeq-hub", "publish", f"{MODEL}@main", "--to", "alice/shapes-MoPEQ"]
    assert (job.spec["flavor"], job.spec["timeoutSeconds"]) == ("cpu-upgrade", 6 * 3600)


def test_a_log_that_breaks_off_is_followed_to_its_end_and_told_once(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_PAUSE_SECONDS", 0.0)
    hub.plan_job(["one", "two"], ["three"])
    hub.fail_next("/logs$", status=503)
    hub.fail_next(r"/api/jobs/alice/\w+$", status=502, method="GET")
    status, out, _ = run(capsys, MODEL)
    assert status == 0
    assert out.splitlines()[1:-1] == ["one", "two", "three"]
    assert hub.pending_faults == 0


def test_a_hub_that_keeps_failing_is_given_up_in_one_line(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_PAUSE_SECONDS", 0.0)
    hub.fail_next("/logs$", status=500, times=50, message="down")
    status, _, error = run(capsys, MODEL)
    assert status == 1
    assert error.startswith(f"error: the Hub refused job {hub.jobs[0].id}: down")
    assert len(error.splitlines()) == 1
    assert len(hub.requests("/logs$")) == 6


@pytest.mark.parametrize("outcome", ["ERROR", "CANCELED"])
def test_a_job_that_fails_is_an_error(hub: HubServer, outcome: str, capsys: pytest.CaptureFixture[str]) -> None:
    hub.plan_job(["error: something"], outcome=outcome, message="exit code 1")
    status, out, error = run(capsys, MODEL)
    (job,) = hub.jobs
    assert status == 1
    assert "error: something" in out
    assert error == (
        f"error: job {job.id} ended as {outcome}: exit code 1; its log is at {hub.endpoint}/jobs/alice/{job.id}\n"
    )


def test_json_is_one_document(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    hub.plan_job(["many words"])
    _, out, _ = run(capsys, MODEL, "--json")
    (job,) = hub.jobs
    assert json.loads(out) == {"id": job.id, "url": f"{hub.endpoint}/jobs/alice/{job.id}", "stage": "COMPLETED"}
    assert "--json" not in job.spec["command"]


def test_a_log_that_holds_a_token_is_not_told_as_it_is(
    hub: HubServer, token: str, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.plan_job([f"using {token}"])
    _, out, error = run(capsys, MODEL)
    assert token not in out + error
    assert "using ***" in out


def test_who_stops_following_is_told_that_the_job_goes_on(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.plan_job(["one", "two"])

    def stop(line: str) -> None:
        if line == "one":
            raise KeyboardInterrupt

    with pytest.raises(jobs.MopeqError, match=r"goes on: http.*; `hf jobs cancel \w+` ends it"):
        jobs.publish(MODEL, None, [], stop)
    assert len(hub.jobs) == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["./model"], "a job cannot read ./model"),
        (["here"], "a job cannot read here"),
        ([MODEL, "--to", "./out"], "a job cannot write to the folder ./out"),
        ([MODEL, "--questions", "here/q.jsonl"], "a job cannot read here/q.jsonl"),
        ([MODEL, "--quantizer", "gptq", "--calibration", "q.jsonl"], "a job cannot read q.jsonl"),
        ([MODEL, "--sign", "oidc"], "a job on the Hub has neither an OIDC identity nor your key"),
        ([MODEL, "--timeout", "soon"], "--timeout 'soon' is not a time"),
        ([MODEL, "--ray-address", "host:6379"], "--ray-address is for --engine ray"),
        ([MODEL, "--engine", "slurm"], "--engine 'slurm' does not exist"),
        ([MODEL, "--bits", "5"], "bits 5 are not among"),
    ],
)
def test_what_cannot_work_there_is_refused_before(
    options: list[str], words: str, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    status, _, error = run(capsys, *options)
    assert status == 2
    assert words in error
    assert len(error.splitlines()) == 1
    assert hub.jobs == []


def test_a_machine_that_the_hub_does_not_have_is_refused_by_it(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = run(capsys, MODEL, "--flavor", "abacus")
    assert status == 1
    assert error == "error: the Hub refused the job: Invalid flavor: abacus; try again later\n"


def test_a_job_needs_a_token(
    hub: HubServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    status, _, error = run(capsys, MODEL)
    assert status == 1
    assert error.startswith("error: --engine jobs needs a token and none is set;")
    assert hub.jobs == []


@pytest.mark.parametrize("option", ["--flavor", "--timeout"])
def test_options_of_a_job_are_not_taken_without_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["publish", MODEL, option, "6h"])
    assert ended.value.code == 2
    assert f"{option} is for --engine jobs" in capsys.readouterr().err


def test_quantize_has_no_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["quantize", MODEL, str(tmp_path / "out"), "--engine", "jobs"])
    assert ended.value.code == 2
    assert "--engine jobs is for publish" in capsys.readouterr().err
