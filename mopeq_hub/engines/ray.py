"""The engine for a Ray cluster: each unit is a task on whatever machine has room for it.

Ray places the tasks, notices a worker that is lost and starts its task again. A worker fetches its own shard to its own
disk and leaves or sends its own files; only small results travel back.
"""

import logging
import os
import platform
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mopeq_hub.engines import Done, Item, Work
from mopeq_hub.errors import MopeqError
from mopeq_hub.progress import Advance
from mopeq_hub.version import __version__

_RETRIES = 3
"""How often a unit whose worker was lost is begun again."""
_PATIENCE_SECONDS = 1.0
"""How long a wait lasts before signals are looked at."""
_ANSWER_SECONDS = 10.0
_SOON_SECONDS = 3.0
"""How long tasks may take to end by themselves before they are cancelled."""
_ENDING_SECONDS = 30.0
"""How long cancelled tasks may take to end; Ray asks a worker again after two seconds where it had not begun yet."""


class Ray:
    """Work on an existing cluster, or on one of this machine's that lasts as long as this is open.

    address: of the cluster, as Ray understands it; None takes `RAY_ADDRESS`, or starts a cluster here. Nothing is
    started or connected to before the first unit.
    """

    elsewhere = True

    def __init__(self, address: str | None = None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or "local"
        self._connected = False

    def __enter__(self) -> "Ray":
        # Whether there is Ray is said before anything is measured.
        _ray()
        return self

    def __exit__(self, *error: object) -> None:
        if self._connected:
            # A cluster that was there before stays; it is only left.
            _ray().shutdown()
            self._connected = False

    def run(
        self, work: Work[Item, Done], items: Sequence[Item], done: Callable[[Item, Done], None], advance: Advance
    ) -> None:
        """As `Engine` says; units end in any order. Raises MopeqError where the cluster cannot be used, or where the
        worker of one unit is lost again and again."""
        if not items:
            return
        ray = _ray()
        self._connect(ray)
        cores = _cores(ray)
        task = ray.remote(_do).options(num_cpus=cores, max_retries=_RETRIES)
        environment = _environment()
        waiting = {
            task.remote(__version__, ray.cloudpickle.dumps((work.part(item), item)), environment, cores): item
            for item in items
        }
        try:
            while waiting:
                for reference in _ended(ray, list(waiting)):
                    result, told = _answer(ray, reference)
                    advance(told)
                    done(waiting.pop(reference), result)
        except BaseException:
            _cancel(ray, list(waiting), running=_together(ray, cores))
            raise

    def _connect(self, ray: Any) -> None:
        """Raises MopeqError where there is no such cluster, or it is of another version."""
        _check_reachable(self._address)
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"include_dashboard": False} if self._address == "local" else {}
        try:
            with _own_signals():
                ray.init(self._address, log_to_driver=False, logging_level=logging.ERROR, **own)
        except (RuntimeError, ConnectionError, ValueError, ray.exceptions.RayError) as error:
            raise _unusable(self._address, error) from None
        self._connected = True


def _check_reachable(address: str) -> None:
    """Raises MopeqError where nobody answers at host:port, for which Ray itself would wait many minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        raise _unusable(address, error.strerror or error) from None


def _unusable(address: str, why: object) -> MopeqError:
    return MopeqError(f"the Ray cluster at {address} cannot be used: {why}", "check --ray-address and `ray status`")


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MopeqError("--engine ray needs Ray", "pip install 'mopeq-hub[ray]'") from None
    return ray


@contextmanager
def _own_signals() -> Iterator[None]:
    """Ray sets handlers of its own when it is connected to; those that were there stay."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _cores(ray: Any) -> int:
    """CPUs of a task: half of the smallest machine's, so that one task can fetch while another computes."""
    machines = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max(1, min((cores for cores in machines if cores), default=1) // 2)


def _together(ray: Any, cores: int) -> int:
    """How many tasks of so many cores the cluster has room for."""
    return int(ray.cluster_resources().get("CPU", 0)) // cores


def _environment() -> dict[str, str]:
    """What a worker needs to reach the Hub as this process does.

    It travels with each task and not as Ray's `runtime_env`, which Ray writes into its log files as it is.
    """
    from huggingface_hub import get_token

    from mopeq_hub import hub_client

    found = {"HF_ENDPOINT": hub_client.api().endpoint, "HF_TOKEN": get_token()}
    return {name: value for name, value in found.items() if value}


def _ended(ray: Any, waiting: list[Any]) -> list[Any]:
    """Those tasks that came to an end within a moment."""
    try:
        return list(ray.wait(waiting, timeout=_PATIENCE_SECONDS)[0])
    except SystemError as error:
        # What a signal's handler raises within Ray's own code comes out wrapped.
        raise error.__cause__ or error from None


def _cancel(ray: Any, references: list[Any], running: int) -> None:
    """End tasks, of which at most the first `running` have begun, and return when they have ended: one that goes on
    would write where the next run writes.

    Ray (2.60) aborts this process where a task is cancelled in the moment in which it ends by itself, as tasks do that
    all meet the same trouble. So those that have not begun are cancelled first, and a begun one only where it does not
    end soon.
    """
    begun, queued = references[:running], references[running:]
    for reference in queued:
        ray.cancel(reference, force=True)
    lasting = _outlasting(ray, begun, _SOON_SECONDS, quiet=True)
    for reference in lasting:
        ray.cancel(reference, force=True)
    _outlasting(ray, [*lasting, *queued], _ENDING_SECONDS)


def _outlasting(ray: Any, references: list[Any], seconds: float, quiet: bool = False) -> list[Any]:
    """Those tasks that have not ended after so many seconds or, if `quiet`, once none has for a moment."""
    until = time.monotonic() + seconds
    while references and time.monotonic() < until:
        ended = _ended(ray, references)
        if quiet and not ended:
            break
        references = [reference for reference in references if reference not in ended]
    return references


def _answer(ray: Any, reference: Any) -> tuple[Any, int]:
    """What a task gave, and the bytes that it told. Raises what it raised."""
    try:
        answer = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise _fault(error) from None
    except ray.exceptions.RayError as error:
        raise MopeqError(
            f"a Ray worker was lost {_RETRIES + 1} times at the same shard: {type(error).__name__}",
            "most likely its machine has too little memory; look at Ray's logs there",
        ) from None
    if isinstance(answer, MopeqError):
        raise answer
    found: tuple[Any, int] = answer
    return found


def _fault(error: Any) -> BaseException:
    """What went wrong in a task that nobody foresaw."""
    if "failed to import" in str(error) or isinstance(error.cause, ImportError):
        return _not_alike("a machine of the cluster lacks it, or something it needs")
    cause: BaseException = error.cause
    return cause


def _not_alike(what: str) -> MopeqError:
    return MopeqError(f"mopeq-hub {__version__} works here: {what}", "install the same version on every machine")


def _do(version: str, parcel: bytes, environment: dict[str, str], cores: int) -> tuple[Any, int] | MopeqError:
    """One unit, in a worker of the cluster: what its stages give and the bytes that they tell, or what is wrong.

    What is wrong is given back and not raised, since Ray would wrap it in a traceback.
    """
    # Before anything is imported that reads it.
    os.environ.update(environment)
    import pickle

    from mopeq_hub import workplace

    if version != __version__:
        return MopeqError(
            f"{platform.node()} has mopeq-hub {__version__}, not {version}", "install the same version everywhere"
        )
    _use(cores)
    told: list[int] = []
    try:
        with workplace.scratch() as place:
            work, item = pickle.loads(parcel)
            stages = work.open(told.append, place)
            stages.get(item)
            return stages.finish(stages.work(item)), sum(told)
    except MopeqError as error:
        return error
    except OSError as error:
        where = f" at {error.filename}" if error.filename else ""
        return MopeqError(f"{error.strerror or error}{where} on {platform.node()}", "free some space there, or add it")


def _use(cores: int) -> None:
    """Let the kernels use as many threads as Ray gave cores; for OpenMP Ray has seen to it."""
    import numba

    numba.set_num_threads(min(cores, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
