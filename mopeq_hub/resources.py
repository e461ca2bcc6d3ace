"""Where the files that are not Python lie: the templates and the Space's app.

A wheel carries them inside the package, in `mopeq_hub/_bundled` (pyproject.toml puts them there); a checkout has them
beside the package, where people look for them and the Space's app can be run by itself. Only this file knows both.
"""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def templates() -> Path:
    """The folder of the Jinja2 templates."""
    return _bundled("templates")


def spaces() -> Path:
    """The folder of the Spaces' apps, one folder each."""
    return _bundled("spaces")


def _bundled(name: str) -> Path:
    installed = _PACKAGE / "_bundled" / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
