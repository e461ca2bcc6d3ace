"""How to make the real client speak to the server.

The client reads most of its settings from the environment once, when it is imported.  For a subprocess it is therefore
enough, and robust, to set the environment; in the present process it is too late, and the constants have to be
replaced, which works because the client looks them up at each call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from .server import HubServer

_CLIENT_PREFIXES = ("HF_", "HUGGING", "TRANSFORMERS_")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def client_environment(hub: HubServer, home: Path, token: str | None = None) -> dict[str, str]:
    """The whole environment for a subprocess: the present one without anything that leads to the real Hub."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_CLIENT_PREFIXES) and name.lower() not in _PROXIES
    }
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }
    return kept | settings | ({"HF_TOKEN": token} if token else {})


@contextmanager
def client_pointed_at(hub: HubServer, home: Path) -> Iterator[None]:
    """Let the client that is imported in this process use the server, its own empty cache, and no saved token."""
    from huggingface_hub import close_session, constants

    replaced = {
        "ENDPOINT": hub.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_DISABLE_XET": True,
        # Telemetry would put a request of its own before the first one, and keep a file outside of this home.
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN_PATH": str(home / "token"),
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
    }
    with ExitStack() as undo:
        undo.enter_context(mock.patch.dict(os.environ, {"NO_PROXY": "127.0.0.1"}))
        for name, value in replaced.items():
            undo.enter_context(mock.patch.object(constants, name, value))
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            os.environ.pop(name, None)
        # The shared session keeps connections of an earlier server and the proxies of an earlier environment.
        close_session()
        yield
        close_session()
