"""The app as a visitor meets it: started as it is on a Space, asked through its API, with the small trained model."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mopeq_hub.space import render_space
from tests.report.documents import manifest

MODEL = Path(__file__).parents[1] / "assets" / "shapes-moe-vl"
PICTURE = MODEL / "images" / "eval-014.png"
OFFLINE = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
RUN_LOCAL = "import sys, pathlib, mopeq_hub.space as s; s.run_local(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"


class App:
    """A running Space and a client of its API."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        from gradio_client import Client

        self.process = process
        self.client = Client(url, verbose=False)

    def ask(self, question: str, picture: Path | None = PICTURE) -> tuple[str, str, str, str]:
        from gradio_client import handle_file

        file = handle_file(str(picture)) if picture else None
        answer: Any = self.client.predict(file, question, 16, api_name="/ask")
        return tuple(answer)

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if any("worker.py" in part for part in child.cmdline())]


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    folder = tmp_path / "space"
    render_space(folder, manifest(), os.path.relpath(MODEL, folder), str(MODEL), "apache-2.0")
    port = free_port()
    environment = {**os.environ, **OFFLINE, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", RUN_LOCAL, str(folder), str(port)]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        wait_until_up(process, port)
        yield App(process, f"http://127.0.0.1:{port}")
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


def test_a_visit(app: App) -> None:
    """One test, because starting the app and two models takes longer than everything that is asked of them."""
    both_models_answer_with_their_figures_each_in_its_own_process(app)
    a_process_that_died_is_started_again(app)
    what_a_model_cannot_answer_is_said_in_words(app)
    an_empty_question_is_refused_in_words(app)


def both_models_answer_with_their_figures_each_in_its_own_process(app: App) -> None:
    original, original_figures, quantized, quantized_figures = app.ask("what is at top left ?")
    assert original == quantized == "a cyan square"
    for figures in (original_figures, quantized_figures):
        assert all(words in figures for words in ("s to first token", "tokens/s", "GB resident memory"))
    assert len(app.workers()) == 2


def a_process_that_died_is_started_again(app: App) -> None:
    victim, survivor = app.workers()
    victim.kill()
    while victim.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.05)
    original, _, quantized, _ = app.ask("what is two plus four ?", picture=None)
    assert original == quantized == "six"
    assert survivor.pid in [worker.pid for worker in app.workers()]


def what_a_model_cannot_answer_is_said_in_words(app: App) -> None:
    original, trouble, quantized, _ = app.ask("<image> what is at top left ?")
    assert original == quantized == ""
    assert trouble.startswith("The original model could not answer. ValueError:")


def an_empty_question_is_refused_in_words(app: App) -> None:
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match="Write a question first"):
        app.ask("  ")
