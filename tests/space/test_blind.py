"""Blind mode gives nothing away, answers are compared word by word, and votes are kept."""

import json
import sqlite3
from pathlib import Path

import pytest

from tests.hub import HubServer
from tests.space.conftest import Load

NAME = "mopeq-c4c4c4c4c4c4-5b5b5b5b5b5b"


def test_answers_are_shown_in_step_so_that_no_speed_tells_which_is_which(load: Load) -> None:
    in_step, answer = load("blind").in_step, load("answer").Answer
    slow, fast = answer("one two"), answer("one two three four")
    assert in_step(slow, fast) == ("one two", "one two")
    assert in_step(answer(""), fast) == ("", "")
    assert in_step(slow, answer("done", ended=True)) == ("one two", "done")
    assert in_step(answer("one", ended=True), answer("one two", ended=True)) == ("one", "one two")


def test_each_side_is_left_now_and_then(load: Load) -> None:
    blind = load("blind")
    assert {blind.shuffled() for _ in range(100)} == {blind.ORIGINAL_LEFT, blind.QUANTIZED_LEFT}


@pytest.mark.parametrize(
    ("left", "right", "place"),
    [
        ("a cyan square", "a cyan square", None),
        ("a  cyan square\n", "a cyan square", None),
        ("a cyan square", "a red square", 1),
        ("a cyan", "a cyan square", 2),
        ("", "a", 0),
    ],
)
def test_the_first_word_that_differs_is_found(load: Load, left: str, right: str, place: int | None) -> None:
    assert load("difference").first_difference(left, right) == place


def test_the_difference_is_marked_between_its_words(load: Load) -> None:
    shown = load("difference").shown
    assert "The answers are the same." in shown("a b", "a b")
    assert "differ in spaces alone" in shown("a b", "a  b")
    marked = shown("a <b>cyan</b> square", "a red")
    assert "The answers first differ at word 2." in marked
    assert "a <mark>&lt;b&gt;cyan&lt;/b&gt;</mark> square" in marked
    assert "a <mark>red</mark>" in marked
    assert "a <mark>(ends here)</mark>" in shown("a", "a b")
    long = " ".join(map(str, range(100)))
    assert "<dd>… 38 39 40" in shown(long, long.replace(" 50 ", " fifty "))


def test_votes_are_counted_for_the_side_that_was_meant(load: Load, tmp_path: Path) -> None:
    votes = load("votes")
    kept = votes.LocalVotes(tmp_path / "kept" / "votes.sqlite")
    for vote, left in (("left", "original"), ("left", "quantized"), ("right", "original"), ("good", "quantized")):
        kept.add(votes.Vote(NAME, "d1gest", vote, left, votes.now()))
    kept.add(votes.Vote("another", "d1gest", "bad", "original", votes.now()))
    again = votes.LocalVotes(tmp_path / "kept" / "votes.sqlite")
    assert again.totals(NAME) == {"original": 1, "quantized": 2, "good": 1}
    assert votes.in_words(again.totals(NAME)) == (
        "4 votes so far: original better 1, quantized better 2, both good 1, both bad 0."
    )
    columns = [row[1] for row in sqlite3.connect(again.path).execute("PRAGMA table_info(votes)")]
    assert columns == ["time", "publication", "question", "vote", "left_side"]


def test_what_a_vote_keeps_of_its_question_tells_pictures_and_settings_apart_and_is_not_the_question(
    load: Load, tmp_path: Path
) -> None:
    digest, settings = load("blind").digest, load("answer").Settings
    picture = tmp_path / "p.png"
    picture.write_bytes(b"1")
    kept = {digest(None, "what ?", settings()), digest(str(picture), "what ?", settings())}
    kept |= {digest(None, "what ?", settings(seed=1)), digest(None, "who ?", settings())}
    assert len(kept) == 4
    assert all(len(told) == 64 for told in kept)


def test_votes_lie_where_the_variable_says_and_else_beside_the_folder_that_may_be_replaced(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_votes = load("votes").open_votes
    monkeypatch.delenv("MOPEQ_VOTES", raising=False)
    assert open_votes().path == tmp_path / "space.votes.sqlite"
    monkeypatch.setenv("MOPEQ_VOTES", str(tmp_path / "elsewhere"))
    assert open_votes().path == tmp_path / "elsewhere" / "votes.sqlite"
    monkeypatch.setenv("MOPEQ_VOTES_REPO", "alice/votes")
    assert open_votes().path == tmp_path / "elsewhere" / "votes.sqlite"


def test_votes_go_to_a_dataset_one_line_each_and_count_in_the_next_run(
    load: Load, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = load("votes")
    stranger = {"publication": NAME, "question": "d", "vote": "<b>", "left": "original", "time": "now"}
    lines = ["no json", "[1]", json.dumps(stranger), json.dumps({**stranger, "vote": "bad"})]
    hub.add_repo("alice/votes", {"votes/older.jsonl": "\n".join(lines).encode()}, repo_type="dataset")
    monkeypatch.setenv("HF_TOKEN", hub.token("alice"))
    monkeypatch.setenv("MOPEQ_VOTES_REPO", "alice/votes")
    kept = votes.open_votes()
    assert kept.where == "in the dataset alice/votes"
    kept.add(votes.Vote(NAME, "d1gest", "left", "original", "2026-01-01T00:00:00+00:00"))
    assert kept.totals(NAME) == {"bad": 1, "original": 1}
    kept.scheduler.trigger().result()
    kept.scheduler.stop()
    [written] = [
        content
        for name, content in hub.files("alice/votes", repo_type="dataset").items()
        if name.startswith("votes/") and name != "votes/older.jsonl"
    ]
    assert json.loads(written) == {
        "publication": NAME,
        "question": "d1gest",
        "vote": "left",
        "left": "original",
        "time": "2026-01-01T00:00:00+00:00",
    }
    next_run = votes.open_votes()
    next_run.scheduler.stop()
    assert next_run.totals(NAME) == {"bad": 1, "original": 1}


def test_a_dataset_that_refuses_leaves_the_votes_in_a_file_and_says_so(
    load: Load, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_repo("bob/votes", {}, repo_type="dataset")
    monkeypatch.setenv("HF_TOKEN", hub.token("alice", role="read"))
    monkeypatch.setenv("MOPEQ_VOTES_REPO", "alice/new-votes")
    monkeypatch.setenv("MOPEQ_VOTES", str(tmp_path))
    assert load("votes").open_votes().path == tmp_path / "votes.sqlite"
    said = capsys.readouterr().err
    assert "votes cannot be kept in alice/new-votes" in said
    assert hub.token("alice", role="read") not in said
