"""The engine that a user names."""

from collections.abc import Iterator
from contextlib import contextmanager

from mopeq_hub.engines import Engine
from mopeq_hub.engines.local import LOCAL
from mopeq_hub.errors import UsageError

NAMES = ("local", "ray", "jobs")


def check_options(name: str, **options: str | None) -> None:
    """Raises UsageError on an engine that does not exist, or an option that belongs to another one.

    options: `ray_address`, `flavor` and `timeout` as the user gave them, None where not.
    """
    if name not in NAMES:
        raise UsageError(f"--engine {name!r} does not exist", f"choose from {', '.join(NAMES)}")
    for option, value in options.items():
        owner = "ray" if option == "ray_address" else "jobs"
        if value is not None and name != owner:
            raise UsageError(f"--{option.replace('_', '-')} is for --engine {owner}", f"add --engine {owner}")


@contextmanager
def engine_named(name: str, ray_address: str | None = None) -> Iterator[Engine]:
    """The engine, and what it started is stopped at the end. Raises UsageError on `jobs`, which does whole commands."""
    if name == "jobs":
        raise UsageError("--engine jobs is for publish", "use local or ray")
    if name == "local":
        yield LOCAL
        return
    from mopeq_hub.engines.ray import Ray

    with Ray(ray_address) as ray:
        yield ray
