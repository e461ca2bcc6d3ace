"""Scripts in processes of their own: a stranger's, who has transformers and auto-round and nothing of this project, or
one in which this project may be imported.

Run as a program it imports what every model needs, once, and then runs each script that it is given as a copy of
itself; auto-round is left for the scripts to import, since importing it changes transformers.
"""

import atexit
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path


class _Absent:
    """Makes packages unimportable, as if they were not installed."""

    names = ("mopeq_hub", "numba", "typer", "jsonschema")

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.names:
            raise ModuleNotFoundError(f"{name} is not installed here")
        return None


_running: list["subprocess.Popen[str]"] = []


def run_apart(script: Path | str, *arguments: object, project: bool = False) -> None:
    """Run a script, a file or its text, and see that it ends well. project: let it import this project. Its environment
    is that of the first one."""
    if not _running:
        command = [sys.executable, __file__]
        _running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        atexit.register(_running[0].kill)
    (process,) = _running
    assert process.stdin
    assert process.stdout
    text = script.read_text("utf-8") if isinstance(script, Path) else script
    process.stdin.write(json.dumps([project, text, *map(str, arguments)]) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "0\n", "standard error says why"


def main() -> None:
    sys.meta_path.insert(0, _Absent())
    here = Path(__file__).parent
    sys.path[:] = [path for path in sys.path if Path(path).resolve() not in (here, here.parent)]
    for name in ("torch", "transformers.modeling_utils", "transformers.processing_utils", "transformers.generation"):
        __import__(name)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        copied = os.fork()
        if copied == 0:
            _run(*json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(copied, 0)[1]), file=answers, flush=True)


def _run(project: bool, text: str, *arguments: str) -> None:
    status = 1
    try:
        if project:
            sys.meta_path.pop(0)
            sys.path.insert(0, str(Path(__file__).parents[1]))
        sys.argv[1:] = arguments
        exec(compile(text, "<script>", "exec"), {"__name__": "__main__"})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
