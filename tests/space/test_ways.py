"""How both models are asked on machines of every size, and what the page says of it."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.space.conftest import MODEL, Load

PICTURE = str(MODEL / "images" / "eval-014.png")
QUANTIZED_NEEDS, ORIGINAL_NEEDS = 700_001_200, 706_933_900


@pytest.fixture
def asked(load: Load, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the models, in order, where no real process is started."""
    done: list[str] = []
    answer = load("answer").Answer

    def ask(self: Any, *_: Any) -> Iterator[Any]:
        done.append(f"{self.name} asked")
        self.loaded = True
        yield answer(f"from {self.name}", ended=True)

    def stop(self: Any) -> None:
        if self.loaded:
            done.append(f"{self.name} stopped")
        self.loaded = False

    process = load("model_process").ModelProcess
    monkeypatch.setattr(process, "ask", ask)
    monkeypatch.setattr(process, "stop", stop)
    return done


def comparison(load: Load, monkeypatch: pytest.MonkeyPatch, memory: int, **options: Any) -> Any:
    """The comparison on a machine with so much memory for models."""
    module = load("comparison")
    used = {"original": ORIGINAL_NEEDS, "quantized": QUANTIZED_NEEDS}

    def left() -> int:
        return memory - sum(used[model.name] for model in (made.original, made.quantized) if model.loaded)

    monkeypatch.setattr(module, "memory_for_models", left)
    made = module.Comparison(load("publication").Publication.read(), **options)
    return made


def test_models_that_fit_together_are_asked_at_the_same_time(
    load: Load, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = comparison(load, monkeypatch, 2_000_000_000)
    for _ in range(2):
        *_, (original, quantized) = both.ask(None, "what ?", load("answer").Settings())
        assert (original.text, quantized.text) == ("from original", "from quantized")
    assert both.plan().words.startswith("Each model runs in a process of its own, and both answer at the same time")
    assert not [what for what in asked if "stopped" in what]


def test_models_that_fit_one_at_a_time_are_loaded_in_turn_the_loaded_one_first(
    load: Load, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    both = comparison(load, monkeypatch, 1_000_000_000)
    for _ in range(2):
        *_, (original, quantized) = both.ask(None, "what ?", load("answer").Settings())
        assert (original.text, quantized.text) == ("from original", "from quantized")
    assert asked == [
        *("original asked", "original stopped", "quantized asked"),
        *("quantized asked", "quantized stopped", "original asked"),
    ]
    assert both.plan().words == (
        "Together the models need about 1.41 GB of memory and this machine has 1.00 GB for models, so they are loaded "
        "and asked one after the other, which takes longer."
    )


def test_nothing_stays_loaded_where_the_gpu_is_lent_for_a_single_question(
    load: Load, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lent = comparison(load, monkeypatch, 2_000_000_000, keep=False)
    list(lent.ask(None, "what ?", load("answer").Settings()))
    assert lent.plan().words.endswith("A GPU is lent for each question, so models are loaded anew each time.")
    assert sorted(asked) == ["original asked", "original stopped", "quantized asked", "quantized stopped"]


def test_an_original_that_does_not_fit_leaves_the_quantized_model_to_answer_alone(
    load: Load, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = comparison(load, monkeypatch, 300_000_000)
    *_, (original, quantized) = alone.ask(None, "what ?", load("answer").Settings())
    assert quantized.text == "from quantized"
    assert original.failed
    assert original.status == (
        "The original needs about 0.71 GB of memory and this machine has 0.30 GB for models, so the quantized model "
        "answers alone."
    )


def test_a_function_gets_its_gpu_where_the_package_that_lends_them_is_there(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in does what spaces.GPU does: the generator runs in a forked process, its values travel as pickles."""
    (tmp_path / "spaces.py").write_text(
        "import multiprocessing\n"
        "def GPU(task, duration):\n"
        "    def decorated(*args):\n"
        "        forking = multiprocessing.get_context('fork')\n"
        "        values = forking.SimpleQueue()\n"
        "        def run():\n"
        "            for value in task(*args):\n"
        "                values.put(value)\n"
        "            values.put(None)\n"
        "        forking.Process(target=run, daemon=True).start()\n"
        "        yield from iter(values.get, None)\n"
        "    return decorated\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "spaces", raising=False)
    comparison_module, answer = load("comparison"), load("answer")
    process = load("model_process").ModelProcess
    monkeypatch.setattr(process, "ask", lambda self, *_: iter([answer.Answer(self.name, ended=True)]))
    both = comparison_module.Comparison(load("publication").Publication.read(), keep=False)
    lent = load("zero_gpu").with_gpu(both.ask)
    *_, (original, quantized) = lent(None, "what ?", answer.Settings())
    assert (original.text, quantized.text) == ("original", "quantized")


class Router(BaseHTTPRequestHandler):
    """The Hub's router of inference providers, as far as one streamed chat goes."""

    said: list[dict[str, Any]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.said.append({"token": self.headers["Authorization"], **request})
        known = request["model"] == "maker/large"
        self.send_response(200 if known else 404)
        self.send_header("Content-Type", "text/event-stream" if known else "application/json")
        self.end_headers()
        if not known:
            self.wfile.write(b'{"error": "no provider has this model"}')
            return
        for word in ("a ", "cyan ", "square"):
            part = {"id": "1", "created": 0, "model": "m", "system_fingerprint": "", "object": "chunk"}
            part["choices"] = [{"index": 0, "delta": {"role": "assistant", "content": word}}]  # type: ignore[assignment]
            self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """What the router was asked; the client is led to it and has a token."""
    from huggingface_hub.inference._providers._common import AutoRouterConversationalTask

    server = ThreadingHTTPServer(("127.0.0.1", 0), Router)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(AutoRouterConversationalTask, "_prepare_base_url", lambda *_: address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_visitor")
    Router.said.clear()
    yield Router.said
    server.shutdown()
    server.server_close()


def test_an_original_too_large_for_this_machine_is_asked_of_a_provider_where_there_is_a_token(
    load: Load, asked: list[str], router: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = comparison(load, monkeypatch, 705_000_000)
    place = load("publication").Place
    elsewhere.original.place = place("maker/large", "c0ffee")
    monkeypatch.setattr(place, "weights_bytes", lambda self: 10**12 if self.link else 1000)
    assert "asked through Inference Providers" in elsewhere.plan().words
    settings = load("answer").Settings(length=9, temperature=0.5, seed=3)
    answers = list(elsewhere.ask(PICTURE, "what ?", settings))
    original, quantized = answers[-1]
    assert (original.text, quantized.text) == ("a cyan square", "from quantized")
    assert {"a ", "a cyan ", "a cyan square"} <= {first.text for first, _ in answers}
    assert "run by an inference provider" in original.status
    [request] = router
    assert request["token"] == "Bearer hf_visitor"
    expected = {"model": "maker/large", "max_tokens": 9, "temperature": 0.5, "seed": 3, "stream": True}
    assert {name: request[name] for name in expected} == expected
    picture, text = request["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    assert text == {"type": "text", "text": "what ?"}


def test_a_provider_that_does_not_have_the_model_is_reported_in_words(load: Load, router: list[dict[str, Any]]) -> None:
    remote = load("provider").RemoteModel("original", load("publication").Place("maker/unknown", None))
    *_, last = remote.ask(None, "what ?", load("answer").Settings())
    assert last.failed
    assert last.status.startswith("The inference provider did not answer for the original model. ")
    assert "hf_visitor" not in last.status
    assert "\n" not in last.status


def test_the_space_variable_for_memory_is_a_limit(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = load("machine")
    monkeypatch.setattr(machine, "_used_here", lambda: 10**9)
    monkeypatch.setenv("MEMORY", "1Gi")
    assert machine.available_memory() <= 2**30 - 10**9


def test_the_memory_of_gpus_counts_where_there_are_some(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = load("machine")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.free_gpu_memory() is None
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 40000\necho 1000\n")
    tool.chmod(0o755)
    assert machine.memory_for_models() == 41_000 * 2**20
    tool.write_text("#!/bin/sh\necho '[N/A]'\n")
    assert machine.free_gpu_memory() is None
