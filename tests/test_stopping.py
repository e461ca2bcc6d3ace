"""A run that is stopped leaves no process and nothing half done behind, only what the same command goes on from."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["quantizing", "measuring"])
def test_a_stopped_run_cleans_up(number: signal.Signals, moment: str, shapes: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mopeq_hub.cli", "publish", str(shapes), "--recipe", "mopeq"]
    command += ["--to", str(tmp_path / "out" / "model")]
    process = psutil.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (list(tmp_path.glob("out/.mopeq-*")) if moment == "quantizing" else process.children()):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    children = process.children()
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "error: stopped before the end; the same command goes on from there"
    assert "Traceback" not in said
    assert all(path.name.startswith(".mopeq-kept-") for path in tmp_path.glob("out/*"))
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)
