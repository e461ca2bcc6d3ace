"""`mopeq-hub`: a command run, with its signals and its errors; each error is one line, without a traceback."""

import os
import signal
import sys
from io import TextIOWrapper
from typing import NoReturn

from mopeq_hub.commands import app
from mopeq_hub.errors import MopeqError, StoppedError, UsageError, described
from mopeq_hub.startup import collect_later, collect_rarely, wait_asleep
from mopeq_hub.unneeded import spare


def main(arguments: list[str] | None = None) -> None:
    """Run a command; every error a user can meet is one line on standard error, exit code 1, or 2 for wrong usage.

    arguments: None where the process is the command's own, and they are its.
    """
    if arguments is None:
        collect_later()
        spare()
    else:
        collect_rarely()
    wait_asleep()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal that knows no dashes or blocks gets question marks, not a fault.
            stream.reconfigure(errors="replace")
    try:
        sys.exit(app(args=arguments, prog_name="mopeq-hub", standalone_mode=False) or 0)
    except UsageError as error:
        _fail(str(error), 2)
    except BrokenPipeError:
        # Whoever read the output has seen enough; what is still buffered must not fail once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (MopeqError, OSError, MemoryError) as error:
        _fail(described(error), 1)
    except StoppedError:
        _fail("stopped before the end; the same command goes on from there", 130)
    except Exception as error:
        if hasattr(error, "format_message"):
            _fail_usage(error.format_message())
        if os.environ.get("MOPEQ_DEBUG"):
            raise
        _fail(described(error), 1)


def _stop(number: int, frame: object) -> None:
    # What is cleaned up now must not be stopped in the middle.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise StoppedError


def _fail_usage(message: str) -> NoReturn:
    """What Typer says of a command line that it does not understand; without a message it has printed the help."""
    if message:
        _fail(f"{message.rstrip('.')}; see `mopeq-hub --help`", 2)
    sys.exit(2)


def _fail(text: str, status: int) -> NoReturn:
    from mopeq_hub.redact import redact

    print("error: " + redact(" ".join(text.split())), file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
