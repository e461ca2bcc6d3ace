"""`python -m tests.bench [section ...]`."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, RenderableType

from tests.bench.compile import compilation
from tests.bench.fidelity import bit_maps, quantizers
from tests.bench.hessian import hessian
from tests.bench.kernels import kernels
from tests.bench.plan import plan
from tests.bench.quantize import quantize
from tests.bench.runtime import runtime
from tests.bench.scheme import scheme
from tests.bench.signals import signals
from tests.bench.stream import stream
from tests.bench.tables import Settings, busy, machine, set_threads

SECTIONS: dict[str, Callable[[Settings], Iterator[RenderableType]]] = {
    "fidelity": bit_maps,
    "calibrated": quantizers,
    "signals": signals,
    "scheme": scheme,
    "kernels": kernels,
    "compile": compilation,
    "plan": plan,
    "hessian": hessian,
    "quantize": quantize,
    "stream": stream,
    "runtime": runtime,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description="Measure this project beside auto-round."
    )
    parser.add_argument(
        "sections", nargs="*", metavar="section", help=f"of {', '.join(SECTIONS)}; all if none is named"
    )
    parser.add_argument("--small", action="store_true", help="small sizes: to see that it runs, not how fast")
    parser.add_argument("--turns", type=int, default=3, help="how often each timing is repeated")
    parser.add_argument("--threads", type=int, default=2, help="of torch and Numba")
    parser.add_argument("--limit", type=float, default=30, help="minutes after which auto-round is stopped")
    parser.add_argument("--ours", action="store_true", help="in `stream`, leave auto-round out")
    parser.add_argument("--publish", action="store_true", help="in `stream`, publish from a Hub to a Hub too")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where large files may be")
    given = parser.parse_args()
    unknown = sorted(set(given.sections) - set(SECTIONS))
    if unknown:
        parser.error(f"there is no section {unknown[0]}; choose from {', '.join(SECTIONS)}")
    # Whoever ends it leaves no rival running, and no large files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    console = Console(width=130)
    set_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="mopeq-bench-", dir=given.folder) as folder:
        settings = Settings(
            Path(folder), given.small, given.turns, given.threads, 60 * given.limit, not given.ours, given.publish
        )
        console.print(machine(settings), highlight=False)
        for name in given.sections or SECTIONS:
            before = f"{name}: {busy():.0%} of the cores were busy before it began"
            for made in SECTIONS[name](settings):
                console.print()
                console.print(made)
            console.print(before, highlight=False)


if __name__ == "__main__":
    main()
