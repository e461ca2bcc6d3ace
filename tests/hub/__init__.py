"""A Hub on loopback, for tests that use the real client and the real command line.

It speaks the protocol of the Hub over real sockets and keeps content on disk, so nothing in the code under test is
replaced.  It serves repositories of all three kinds, commits, LFS uploads in one piece and in parts, downloads with
ranges, the typed errors, and jobs that only say what a test planned; it does not serve Xet, pull requests, collections
or web pages.

In the same process::

    from .hub import HubServer, client_pointed_at  # or "from hub import ..." where tests is not a package

    with HubServer(tmp_path / "server") as hub, client_pointed_at(hub, tmp_path / "home"):
        api = HfApi(endpoint=hub.endpoint, token=hub.token("alice"))
        api.create_repo("alice/model")

``client_pointed_at`` is what makes this robust: several functions of the client take no ``endpoint`` and read constants
that were fixed when the client was imported.  Give ``endpoint=`` to ``HfApi``, ``hf_hub_download`` and
``snapshot_download`` all the same: it is the public way.

With a subprocess, where the environment is enough::

    environment = client_environment(hub, tmp_path / "home", token=hub.token("alice"))
    subprocess.run([sys.executable, "-m", "..."], env=environment)

Failures are planned with ``hub.fail_next``; what happened is read from ``hub.requests``, ``hub.traffic`` and
``hub.files``.  Note that an LFS file's address redirects to ``hub.storage_endpoint``, as in production: a fault in the
middle of a download has to match ``/storage/``, not ``/resolve/`` (or set ``Settings(lfs_redirect=False)``).  The
client waits a second before it repeats a request, so each repetition costs a test that second.
"""

from .environment import client_environment, client_pointed_at
from .server import HubServer
from .state import RequestRecord, Settings, Traffic

__all__ = ["HubServer", "RequestRecord", "Settings", "Traffic", "client_environment", "client_pointed_at"]
