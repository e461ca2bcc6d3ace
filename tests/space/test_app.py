"""The app as a visitor meets it: started as it is on a Space, used in a real browser and through its API, with the
small trained model and its publication."""

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mopeq_hub.manifest import read_manifest
from mopeq_hub.space import render_space
from tests.space.browser import PHONE, Visitor, chromium
from tests.space.conftest import MODEL

PICTURE = MODEL / "images" / "eval-014.png"
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
RUN_LOCAL = "import sys, pathlib, mopeq_hub.space as s; s.run_local(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
FIGURES = ("s to first token", "tokens/s", "GB resident memory")


class App:
    """A running Space and a client of its API."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, folder: Path, votes: Path) -> None:
        from gradio_client import Client

        self.process = process
        self.url = url
        self.folder = folder
        self.votes = votes
        self.client = Client(url, verbose=False)

    def ask(self, question: str, picture: Path | None = PICTURE, **settings: Any) -> list[str]:
        """Name, answer and figures of the left side and of the right side, then the difference."""
        return self.stream(question, picture, **settings)[-1]

    def stream(self, question: str, picture: Path | None = PICTURE, **settings: Any) -> list[list[str]]:
        """The same at every step."""
        from gradio_client import handle_file

        file = handle_file(str(picture)) if picture else None
        job = self.client.submit(file, question, api_name="/ask", **settings)
        job.result()
        return [list(output) for output in job.outputs()]

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if any("worker.py" in part for part in child.cmdline())]


@pytest.fixture
def app(tmp_path: Path, published: Path) -> Iterator[App]:
    folder, votes = tmp_path / "space", tmp_path / "votes"
    model = os.path.relpath(published, folder)
    render_space(folder, read_manifest(published), model, str(MODEL), "apache-2.0")
    port = free_port()
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": root, "MOPEQ_VOTES": str(votes)}
    command = [sys.executable, "-c", RUN_LOCAL, str(folder), str(port)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        wait_until_up(process, port)
        yield App(process, f"http://127.0.0.1:{port}", folder, votes / "votes.sqlite")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_up(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, "the app ended before it answered"
        time.sleep(0.1)
    raise AssertionError("the app did not start")


def test_a_visit(app: App, published: Path) -> None:
    """One test, because starting the app and two models takes longer than everything that is asked of them."""
    with chromium() as browser:
        visitor = Visitor(browser, app.url)
        a_question_on_an_uploaded_picture_is_answered_by_both_side_by_side(visitor)
        answers_that_differ_are_marked_where_they_part(
            visitor, *an_answer_streams_and_is_drawn_with_its_seed_again(app)
        )
        in_blind_mode_nothing_tells_which_is_which_until_the_vote(visitor, app)
        a_click_on_an_expert_shows_its_numbers(visitor, published)
        an_expert_is_chosen_by_keyboard(visitor)
        the_other_tabs_show_fidelity_and_card(visitor)
        assert visitor.hosts == {app.url.split("/")[2]}
        everything_fits_a_phone(Visitor(browser, app.url, PHONE))
    every_function_has_a_name(app)
    a_vote_is_possible_once_and_only_on_a_blind_question(app)
    an_expert_is_described_through_the_api(app)
    what_cannot_be_asked_is_refused_in_words(app)
    a_process_that_died_is_started_again(app)


def a_question_on_an_uploaded_picture_is_answered_by_both_side_by_side(visitor: Visitor) -> None:
    visitor.page.evaluate(
        "window.seen = []; setInterval(() => {"
        "  const texts = [...document.querySelectorAll('textarea')].slice(1).map(area => area.value).join('|');"
        "  if (window.seen.at(-1) !== texts) window.seen.push(texts)"
        "}, 5)"
    )
    visitor.upload(PICTURE)
    visitor.ask("what is at top left ?")
    assert visitor.verdict() == "The answers are the same."
    assert visitor.answers() == ("a cyan square", "a cyan square")
    assert visitor.sides() == ["Original shapes-moe-vl", "Quantized shapes-MoPEQ"]
    assert all(words in figures for figures in visitor.figures() for words in FIGURES)
    seen = visitor.page.evaluate("window.seen")
    assert any(0 < len(texts.replace("|", "")) < len("a cyan square" * 2) for texts in seen)


def an_answer_streams_and_is_drawn_with_its_seed_again(app: App) -> tuple[int, str, str]:
    """A seed at which the answers to a question without sense differ, with both answers."""
    for seed in range(30):
        steps = app.stream("what", temperature=2.0, seed=seed)
        _, left, _, _, right, _, verdict = steps[-1]
        if left.split() != right.split():
            break
    assert "The answers first differ at word" in verdict
    place = int(re.findall(r"word (\d+)\.", verdict)[0]) - 1
    assert left.split()[:place] == right.split()[:place]
    assert left.split()[place : place + 1] != right.split()[place : place + 1]
    for side, answer in ((1, left), (4, right)):
        texts = [step[side] for step in steps]
        assert all(answer.startswith(text) for text in texts)
    assert len({(step[1], step[4]) for step in steps}) > 2
    _, again, _, _, again_right, _, _ = app.ask("what", temperature=2.0, seed=seed)
    assert (again, again_right) == (left, right)
    return seed, left, right


def answers_that_differ_are_marked_where_they_part(visitor: Visitor, seed: int, left: str, right: str) -> None:
    page = visitor.page
    page.get_by_label("Temperature").first.fill("2")
    page.get_by_label("Seed").fill(str(seed))
    visitor.ask("what")
    page.locator("#verdict mark").first.wait_for(timeout=60_000)
    assert visitor.answers() == (left, right)
    assert visitor.verdict().startswith("The answers first differ at word")
    assert page.locator("#verdict mark").count() == 2
    page.get_by_label("Temperature").first.fill("0")


def in_blind_mode_nothing_tells_which_is_which_until_the_vote(visitor: Visitor, app: App) -> None:
    page = visitor.page
    page.get_by_label("Blind").check()
    visitor.ask("what is in the middle ?")
    page.get_by_role("button", name="Left is better").wait_for(timeout=60_000)
    assert visitor.sides() == ["Left", "Right"]
    assert visitor.figures() == ["Speed and memory are shown after the vote."] * 2
    assert "digest of the question" in page.locator("#ballot").inner_text()
    assert not app.votes.exists()
    page.get_by_role("button", name="Left is better").focus()
    page.keyboard.press("Enter")
    page.get_by_text("You voted: Left is better").wait_for(timeout=30_000)
    assert {side.split()[0] for side in visitor.sides()} == {"Original", "Quantized"}
    left = visitor.sides()[0].split()[0].lower()
    assert f"{left} better 1" in page.locator("#totals").inner_text()
    page.locator("#ballot").wait_for(state="hidden")
    assert all(words in figures for figures in visitor.figures() for words in FIGURES)
    [(name, vote, was_left)] = sqlite3.connect(app.votes).execute("SELECT publication, vote, left_side FROM votes")
    assert name == json.loads((app.folder / "publication.json").read_text("utf-8"))["publication"]
    assert (vote, was_left) == ("left", left)
    page.get_by_label("Blind").uncheck()


def a_click_on_an_expert_shows_its_numbers(visitor: Visitor, published: Path) -> None:
    visitor.open("Bit map")
    layers = read_manifest(published)["experts"]
    picture = visitor.page.locator(".heatmap img:visible")
    picture.wait_for()
    box = picture.bounding_box()
    assert box
    picture.click(position={"x": box["width"] * 12.5 / 24, "y": box["height"] * 2.5 / 4})
    visitor.page.get_by_text("Layer 2, expert 12").wait_for(timeout=30_000)
    told = visitor.page.locator(".block.expert:visible").inner_text()
    assert f"{layers[2]['bits'][12]} bits per weight" in told
    assert f"{layers[2]['sensitivity'][12]:.6g}" in told
    assert all(words in told for words in ("Scales, median", "RMS weight", "Largest weight", "Use of each code level"))


def an_expert_is_chosen_by_keyboard(visitor: Visitor) -> None:
    expert = visitor.page.get_by_label("Expert").locator("visible=true")
    expert.focus()
    visitor.page.keyboard.press("ArrowUp")
    visitor.page.get_by_text("Layer 2, expert 13").wait_for(timeout=30_000)
    visitor.open("Sensitivity")
    visitor.page.locator(".heatmap img:visible").wait_for()


def the_other_tabs_show_fidelity_and_card(visitor: Visitor) -> None:
    visitor.open("Fidelity")
    visitor.page.get_by_text("Bits per expert weight").locator("visible=true").wait_for()
    visitor.open("Card")
    visitor.page.get_by_text("Rebuild the very same bytes").locator("visible=true").wait_for()
    plots = visitor.page.locator(".document img:visible")
    plots.nth(2).wait_for()
    assert plots.first.evaluate("picture => picture.naturalWidth") > 0


def everything_fits_a_phone(visitor: Visitor) -> None:
    for tab in ("Bit map", "Sensitivity", "Fidelity", "Card", "Compare"):
        visitor.open(tab)
        visitor.page.wait_for_timeout(100)
        assert visitor.width() == PHONE["width"], tab


def every_function_has_a_name(app: App) -> None:
    told: Any = app.client.view_api(return_format="dict", print_info=False)
    assert set(told["named_endpoints"]) == {"/plan", "/ask", "/vote", "/expert"}
    assert "in a process of its own" in app.client.predict(api_name="/plan")


def a_vote_is_possible_once_and_only_on_a_blind_question(app: App) -> None:
    from gradio_client.exceptions import AppError

    app.ask("what is at top left ?")
    with pytest.raises(AppError, match="There is nothing to vote on"):
        app.client.predict("good", api_name="/vote")
    hidden = app.stream("what is at top left ?", blind=True)
    assert hidden[-1][0] == "### Left"
    told = " ".join(text.lower() for step in hidden for text in step)
    assert not any(word in told for word in ("original", "quantized", "tokens/s", "resident"))
    left, right, left_figures, _, totals = app.client.predict("good", api_name="/vote")
    assert {left.split("\n")[0], right.split("\n")[0]} == {"### Original", "### Quantized"}
    assert "tokens/s" in left_figures
    assert "2 votes so far" in totals
    with pytest.raises(AppError, match="There is nothing to vote on"):
        app.client.predict("good", api_name="/vote")


def an_expert_is_described_through_the_api(app: App) -> None:
    from gradio_client.exceptions import AppError

    _, told = app.client.predict(1, 4, api_name="/expert")
    assert "Layer 1, expert 4" in told
    with pytest.raises(AppError, match="The experts of layer 1 are 0 to 23"):
        app.client.predict(1, 24, api_name="/expert")


def what_cannot_be_asked_is_refused_in_words(app: App) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match="Write a question first"):
        app.ask("  ")
    with pytest.raises(AppError, match=r"(?i)length|maximum"):
        app.ask("what ?", length=10**9)
    _, left, trouble, _, right, _, verdict = app.ask("<image> what is at top left ?")
    assert left == right == verdict == ""
    assert "The original model could not answer. ValueError" in trouble


def a_process_that_died_is_started_again(app: App) -> None:
    victim, survivor = app.workers()
    victim.kill()
    # Nobody can tell that a process has ended before its last thread has.
    while victim.status() != psutil.STATUS_ZOMBIE or len(os.listdir(f"/proc/{victim.pid}/task")) > 1:
        time.sleep(0.05)
    _, left, _, _, right, _, _ = app.ask("what is two plus four ?", picture=None)
    assert left == right == "six"
    assert survivor.pid in [worker.pid for worker in app.workers()]
