"""A model in a process of its own: started at its first question, started again if it died, heard while it answers."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from machine import cores, resident_memory
from publication import HERE, Place

SIDES = 2
"""Original and quantized share the cores: more threads than cores make both of them many times slower."""


@dataclass(frozen=True)
class Answer:
    """An answer so far: its text, and in words what is going on, what it took, or what went wrong."""

    text: str = ""
    status: str = ""


class Ended(Exception):
    """The process is gone; says how."""


class ModelProcess:
    """One side of the comparison."""

    def __init__(self, name: str, place: Place, auto_class: str) -> None:
        self.name = name
        self.place = place
        self.loaded = False
        self._auto_class = auto_class
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()
        atexit.register(self.stop)

    def ask(self, picture: str | None, question: str, length: int) -> Iterator[Answer]:
        """The answer as it grows; never raises for what the model or its process does."""
        answer = Answer()
        if self._one_at_a_time.locked():
            yield Answer(status="Waiting for the answer before this one…")
        with self._one_at_a_time:
            try:
                if not self._is_running():
                    yield Answer(status=f"Loading the {self.name} model; this takes a while…")
                    self._start()
                yield Answer(status="Looking and thinking…")
                self._send({"picture": picture, "question": question, "length": length})
                for answer in self._hear():
                    yield answer
            except Ended as end:
                self.stop()
                yield replace(answer, status=str(end))

    def stop(self) -> None:
        """End the process, if there is one."""
        if self._process:
            self._process.kill()
            self._process.wait()
        self._process, self.loaded = None, False

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        self.stop()
        command = [sys.executable, str(HERE / "worker.py"), self.place.location, "--auto-class", self._auto_class]
        if self.place.revision:
            command += ["--revision", self.place.revision]
        threads = str(max(1, cores() // SIDES))
        # A session of its own keeps Ctrl-C for the app; the process ends with the app, when its standard input closes.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={"OMP_NUM_THREADS": threads, **os.environ},
            start_new_session=True,
        )
        first = self._next_message()
        if first["event"] == "failed":
            raise Ended(f"The {self.name} model could not be loaded. {first['reason']}")
        self.loaded = True

    def _send(self, request: dict[str, Any]) -> None:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise Ended(self._how_it_ended()) from None

    def _hear(self) -> Iterator[Answer]:
        text = ""
        while True:
            message = self._next_message()
            if message["event"] == "text":
                text += message["text"]
                yield Answer(text, "Answering…")
            elif message["event"] == "failed":
                yield Answer(text, f"The {self.name} model could not answer. {message['reason']}")
                return
            else:
                yield Answer(text, self._figures(message))
                return

    def _figures(self, done: dict[str, Any]) -> str:
        assert self._process
        rate = done["tokens_per_second"]
        figures = [
            f"{done['first_token_seconds']:.2f} s to first token",
            f"{rate:.1f} tokens/s" if rate else "one token",
            f"{gigabytes(resident_memory(self._process.pid))} resident memory",
        ]
        return " · ".join(figures)

    def _next_message(self) -> dict[str, Any]:
        process = self._process
        assert process is not None
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise Ended(self._how_it_ended())
        return json.loads(line)

    def _how_it_ended(self) -> str:
        assert self._process
        code = self._process.wait()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        why = ", most likely for want of memory" if code == -signal.SIGKILL else ""
        return f"The process of the {self.name} model ended {how}{why}. Ask again to start it again."


def gigabytes(amount: int) -> str:
    return f"{amount / 1e9:.2f} GB"
