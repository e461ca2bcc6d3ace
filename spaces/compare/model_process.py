"""A model in a process of its own: started at its first question, started again if it died, heard while it answers."""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from answer import Answer, Settings, failure, figures, gigabytes
from machine import cores, resident_memory
from publication import HERE, Place


class Ended(Exception):
    """The process is gone; says how."""


class ModelProcess:
    """One side of the comparison.

    pictures: whether it takes any. code: the repo whose code makes the model, None where transformers or mopeq_hub has
    it. published: whether it is a publication. trusted: whether code in the model's own repo makes it.
    threads: with how many a process that is started from now on computes; several processes that have more threads than
    there are cores are many times slower.
    """

    def __init__(
        self,
        name: str,
        place: Place,
        auto_class: str,
        *,
        pictures: bool = False,
        code: Place | None = None,
        published: bool = False,
        trusted: bool = False,
    ) -> None:
        self.name = name
        self.place = place
        self.loaded = False
        self.threads = cores()
        self._auto_class = auto_class
        self._code = code
        self._flags = {"--pictures": pictures, "--published": published, "--trusted": trusted}
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = threading.Lock()
        atexit.register(self.stop)

    def ask(self, picture: str | None, question: str, settings: Settings) -> Iterator[Answer]:
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
                self._send({"picture": picture, "question": question, **asdict(settings)})
                for answer in self._hear():
                    yield answer
            except Ended as end:
                self.stop()
                yield replace(answer, status=str(end), ended=True, failed=True)

    def stop(self) -> None:
        """End the process, if there is one."""
        process, self._process, self.loaded = self._process, None, False
        if process:
            process.kill()
            process.wait()

    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _start(self) -> None:
        self.stop()
        command = [sys.executable, str(HERE / "worker.py"), self.place.location, "--auto-class", self._auto_class]
        if self.place.revision:
            command += ["--revision", self.place.revision]
        command += [flag for flag, given in self._flags.items() if given]
        if self._code:
            command += ["--code", self._code.location]
            command += ["--code-revision", self._code.revision] if self._code.revision else []
        # A session of its own keeps Ctrl-C for the app; the process ends with the app, when its standard input closes.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={"OMP_NUM_THREADS": str(self.threads), **os.environ},
            start_new_session=True,
        )
        first = self._next_message()
        if first["event"] == "failed":
            raise Ended(f"The {self.name} model could not be loaded. {first['reason']}")
        self.loaded = True

    def _send(self, request: dict[str, Any]) -> None:
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            raise Ended(self._how_it_ended(process)) from None

    def _hear(self) -> Iterator[Answer]:
        text = ""
        while True:
            message = self._next_message()
            if message["event"] == "text":
                text += message["text"]
                yield Answer(text, "Answering…")
            elif message["event"] == "failed":
                yield failure(f"The {self.name} model could not answer. {message['reason']}", text)
                return
            else:
                yield Answer(text, self._figures(message), ended=True)
                return

    def _figures(self, done: dict[str, Any]) -> str:
        memory = f"{gigabytes(resident_memory(self._running().pid))} resident memory"
        if done["gpu_bytes"]:
            memory += f" · {gigabytes(done['gpu_bytes'])} GPU memory"
        return figures(done["first_token_seconds"], done["tokens_per_second"], memory)

    def _next_message(self) -> dict[str, Any]:
        process = self._running()
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise Ended(self._how_it_ended(process))
        return json.loads(line)

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise Ended(f"The process of the {self.name} model was stopped. Ask again to start it again.")
        return self._process

    def _how_it_ended(self, process: subprocess.Popen[str]) -> str:
        code = process.wait()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        why = ", most likely for want of memory" if code == -signal.SIGKILL else ""
        return f"The process of the {self.name} model ended {how}{why}. Ask again to start it again."
