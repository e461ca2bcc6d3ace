"""A Hub on loopback in a process of its own, so that its memory is not that of who speaks to it.

`python -m tests.bench.loopback ROOT HOME FOLDER` serves FOLDER as the model alice/source, prints one JSON object (the
environment of a client whose home is HOME), and ends with its standard input.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.hub import HubServer, client_environment

SOURCE = "alice/source"


def main(root: Path, home: Path, folder: Path) -> None:
    with HubServer(root) as hub:
        hub.add_repo(SOURCE, folder)
        print(json.dumps(client_environment(hub, home, token=hub.token("alice"))), flush=True)
        sys.stdin.read()


@contextmanager
def served(root: Path, home: Path, folder: Path, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment of its clients, as long as this lasts."""
    command = [sys.executable, "-m", "tests.bench.loopback", *map(str, (root, home, folder))]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield dict(json.loads(process.stdout.readline()))
        finally:
            process.stdin.close()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
