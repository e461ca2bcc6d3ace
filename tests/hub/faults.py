"""Failures on demand, so that tests can see what the code under test does when the Hub or the network fails."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Literal

Side = Literal["request", "response"]


@dataclass(frozen=True)
class Fault:
    """What shall happen to the requests that match."""

    pattern: re.Pattern[str]
    method: str | None
    status: int | None
    after_bytes: int | None
    side: Side | None
    message: str
    retry_after: int | None

    def concerns(self, method: str, path: str) -> bool:
        """Whether this fault is meant for a request."""
        return self.method in (None, method) and self.pattern.search(path) is not None

    def cut_request(self, method: str) -> int | None:
        """After how many bytes of the request's body the connection is to be lost."""
        return self.after_bytes if self._side(method) == "request" else None

    def cut_response(self, method: str) -> int | None:
        """After how many bytes of the answer's body the connection is to be lost."""
        return self.after_bytes if self._side(method) == "response" else None

    def _side(self, method: str) -> Side:
        return self.side or ("request" if method in ("PUT", "POST") else "response")


class FaultPlan:
    """The faults still to come, taken in the order in which they were planned."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: list[Fault] = []

    def add(self, fault: Fault, times: int) -> None:
        """Plan a fault for the next ``times`` requests that it concerns."""
        with self._lock:
            self._planned.extend([fault] * times)

    def take(self, method: str, path: str) -> Fault | None:
        """The fault for this request, which is thereby used up."""
        with self._lock:
            for position, fault in enumerate(self._planned):
                if fault.concerns(method, path):
                    return self._planned.pop(position)
        return None

    def clear(self) -> None:
        """Forget all that is planned."""
        with self._lock:
            self._planned.clear()

    def __len__(self) -> int:
        return len(self._planned)
