"""`mopeq-hub space DEST --local` opens the Space on this machine until it is stopped."""

import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from mopeq_hub import MopeqError
from mopeq_hub.space import run_local


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_a_port_that_is_taken_is_not_exchanged_for_another(published: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = int(taken.getsockname()[1])
        with pytest.raises(MopeqError, match=f"port {port} is taken"):
            run_local(published.with_name(published.name + "-space"), port)


def test_the_space_answers_until_it_is_stopped(published: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mopeq_hub.cli", "space", str(published), "--local", "--port", str(port)]
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    page = ""
    for _ in range(240):
        assert process.poll() is None
        try:
            page = urllib.request.urlopen(f"http://127.0.0.1:{port}/config").read().decode()
            break
        except OSError:
            time.sleep(0.25)
    assert "original and quantized" in page
    started = process.children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    gone, alive = psutil.wait_procs(started, timeout=30)
    assert gone
    assert not alive
