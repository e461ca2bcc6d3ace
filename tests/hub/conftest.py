"""A fresh server for each test of this folder, and clients that speak to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from . import HubServer, client_pointed_at


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    """A running server to which the client in this process is pointed."""
    with HubServer(tmp_path / "server") as server, client_pointed_at(server, tmp_path / "home"):
        yield server


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    """The client of the account alice, with a token that may write."""
    return HfApi(endpoint=hub.endpoint, token=hub.token("alice"))


@pytest.fixture
def anonymous(hub: HubServer) -> HfApi:
    """A client without a token."""
    return HfApi(endpoint=hub.endpoint, token=False)


@pytest.fixture
def safetensors() -> Callable[[str], bytes]:
    """Makes the smallest safetensors file with one tensor of the given name."""

    def make(tensor: str) -> bytes:
        header = json.dumps({tensor: {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
        return len(header).to_bytes(8, "little") + header + bytes(8)

    return make
