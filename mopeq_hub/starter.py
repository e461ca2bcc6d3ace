"""A process that has imported what every model needs, and begins each job as a copy of itself.

torch and transformers take two to three seconds of a core to import, more than many a job itself. So the first job
starts this process, and each is a fork of it: a process of its own all the same, with its own memory and its own
changes of transformers. auto-round is not among what is imported here, since importing it changes transformers.

Both halves are here: `start`, for whoever has a job, and `main`, the process (`python -m mopeq_hub.starter`).
"""

import atexit
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

from mopeq_hub.startup import begun, collect_later

IMPORTED = ("torch", "transformers.modeling_utils", "transformers.processing_utils", "transformers.generation")
_READ_EARLY = ("PYTHON", "LD_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "MALLOC_", "NUMBA_", "TORCH", "PYTORCH_",
               "CUDA_", "NVIDIA_", "HIP_", "TRANSFORMERS_", "HF_", "TOKENIZERS_")  # fmt: skip
"""How variables begin that libraries read while they are imported."""
_OF_THE_HUB = ("HF_HOME", "HF_ENDPOINT", "HF_TOKEN")
"""Those among them that a process without a network has no use for."""
_DIES_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""
_KILLED = -int(signal.SIGKILL)


class Copy:
    """A running job, with what is used here of a `subprocess.Popen`."""

    def __init__(self, starter: "_Starter", stdout: TextIO) -> None:
        self._starter, self.stdout = starter, stdout

    def wait(self) -> int:
        """The exit status, negative for a signal; the starter may then be given another job."""
        status = self._starter.status()
        if status is None:
            return self._starter.end() or _KILLED
        _idle.append(self._starter)
        return status

    def kill(self) -> None:
        """End the job, and the starter with it."""
        self._starter.end(kill=True)
        self.stdout.read()  # Its end is that of the copy, whose death the system sees to.

    def __enter__(self) -> "Copy":
        return self

    def __exit__(self, *error: object) -> None:
        self.stdout.close()


_idle: "list[_Starter]" = []


@atexit.register
def _end_idle() -> None:
    while _idle:
        _idle.pop().end(kill=True)


os.register_at_fork(after_in_child=_idle.clear)


def start(
    module: str, job: Path, words: TextIO, given: Mapping[str, str], *, anew: bool = False
) -> "Copy | subprocess.Popen[str]":
    """Begin `main(job)` of a module; its standard output is piped, its standard error goes to `words`.

    given: its environment. Where processes cannot be copied safely (anything but Linux), it is started anew; so is one
    that asks the Hub (`anew`), whose address and place on the disk are read by what a copy has imported.
    """
    if anew or sys.platform != "linux":
        return subprocess.Popen(_command(module, job), stdout=subprocess.PIPE, stderr=words, text=True, env=given)
    settings = _read_early(given)
    while _idle:
        starter = _idle.pop()
        if starter.settings == settings:
            break
        starter.end(kill=True)
    else:
        starter = _Starter(settings, words, given)
    return Copy(starter, starter.start(module, job, words, given))


def _command(module: str, job: Path) -> list[str]:
    return [sys.executable, "-m", "mopeq_hub.processes", module, str(job)]


def _read_early(given: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in given.items() if key.startswith(_READ_EARLY) and key not in _OF_THE_HUB}


class _Starter:
    """The process as its parent knows it; `settings` is what its libraries read when they were imported."""

    def __init__(self, settings: dict[str, str], words: TextIO, given: Mapping[str, str]) -> None:
        self.settings = settings
        self._socket, theirs = socket.socketpair()
        self._answers = self._socket.makefile("r", encoding="utf-8")
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), *IMPORTED]
        with theirs:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=words, env=given,
                pass_fds=[theirs.fileno()],
            )  # fmt: skip

    def start(self, module: str, job: Path, words: TextIO, given: Mapping[str, str]) -> TextIO:
        """Ask for a copy; its standard output."""
        asked = {"module": module, "job": str(job), "folder": os.getcwd(), "environment": dict(given)}
        read, write = os.pipe()
        try:
            with suppress(BrokenPipeError, ConnectionResetError):  # It has ended, which its status will tell.
                socket.send_fds(self._socket, [b"\n"], [write, words.fileno()])
                self._socket.sendall(json.dumps(asked).encode() + b"\n")
        finally:
            os.close(write)
        return open(read, encoding="utf-8", errors="replace")

    def status(self) -> int | None:
        """The copy's exit status, once it has ended; None where the starter did first."""
        with suppress(ConnectionResetError):
            if answer := self._answers.readline():
                return int(answer)
        return None

    def end(self, kill: bool = False) -> int:
        """End the process, or wait for its end; its exit status."""
        if kill:
            self._process.kill()
        status = self._process.wait()
        self._answers.close()
        self._socket.close()
        return status


def main() -> None:
    """The process: import, then for each line of JSON a copy, and its exit status in answer, until nobody asks."""
    collect_later()
    descriptor, *imported = sys.argv[1:]
    for name in imported:
        import_module(name)
    # Nothing here is ever searched for cycles again, so that copies share these pages of memory.
    begun()
    # Ctrl-C reaches a terminal's whole group; whoever asks decides what is ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(descriptor)) as asking:
        while given := _next(asking):
            _see_through(asking, *given)


def _next(asking: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """What is asked for, and the descriptors of its standard output and error; None where nobody asks any more."""
    begin, descriptors, _, _ = socket.recv_fds(asking, 1, 2)
    line = b""
    while begin and not line.endswith(b"\n"):
        begin = asking.recv(65536)
        line += begin
    return (json.loads(line), list(descriptors)) if begin else None


def _see_through(asking: socket.socket, asked: dict[str, Any], descriptors: list[int]) -> None:
    """Start a copy and tell its exit status; end it where whoever asked has ended."""
    here, there = os.pipe()
    copied = os.fork()
    if copied == 0:
        _be(asked, descriptors)
    for descriptor in (*descriptors, there):
        os.close(descriptor)
    # The copy alone holds the other end.
    ready, _, _ = select.select([asking.fileno(), here], [], [])
    if here not in ready:
        os.kill(copied, signal.SIGKILL)
    os.close(here)
    status = os.waitstatus_to_exitcode(os.waitpid(copied, 0)[1])
    with suppress(OSError):
        asking.sendall(f"{status}\n".encode())


def _be(asked: dict[str, Any], descriptors: list[int]) -> None:
    """The copy: do the job and end, with a status as Python's own."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for number, descriptor in enumerate(descriptors, start=1):
            os.dup2(descriptor, number)
        os.environ.clear()
        os.environ.update(asked["environment"])
        with suppress(OSError):
            os.chdir(asked["folder"])
        if _spoilt():
            os.execv(sys.executable, _command(asked["module"], asked["job"]))
        import_module(asked["module"]).main(Path(asked["job"]))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _spoilt() -> bool:
    """Whether a GPU was looked at before the copy was made, which then cannot use it."""
    torch = sys.modules.get("torch")
    return torch is not None and any(getattr(torch, kind)._is_in_bad_fork() for kind in ("cuda", "xpu"))


if __name__ == "__main__":
    main()
