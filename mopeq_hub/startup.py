"""A process of this program's own: it starts and ends quickly, and its threads leave the cores to each other.

torch and transformers make millions of objects that stay for good. Python's search for unreachable cycles goes through
them again and again while they are imported, and once more at the end: a second each time.
"""

import atexit
import gc
import os

_THRESHOLDS = (100_000, 20, 50)
_BEFORE = (5_000_000, *_THRESHOLDS[1:])
_WAITING = "OMP_WAIT_POLICY"
_set_here: set[str] = set()


def collect_rarely() -> None:
    """Search for cycles rarely from now on, and not at the end."""
    gc.set_threshold(*_THRESHOLDS)
    atexit.register(gc.freeze)


def collect_later() -> None:
    """The same, and hardly at all before `begun` is called, which does nothing otherwise."""
    collect_rarely()
    gc.set_threshold(*_BEFORE)


def begun() -> None:
    """What was imported and made so far stays, and is never searched."""
    if gc.get_threshold() == _BEFORE:
        gc.freeze()
        gc.set_threshold(*_THRESHOLDS)


def wait_asleep() -> None:
    """Let OpenMP's threads sleep while they wait, where the user did not say how: others read, hash and write."""
    if _WAITING not in os.environ:
        os.environ[_WAITING] = "PASSIVE"
        _set_here.add(_WAITING)


def environment() -> dict[str, str]:
    """What a process that computes with torch alone is given: its threads, woken all the time, lose by sleeping."""
    return {name: value for name, value in os.environ.items() if name not in _set_here}
