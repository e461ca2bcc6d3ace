"""The one Jinja2 environment: what a template prints is escaped, for Markdown and HTML, unless it was made markup."""

from collections.abc import Callable, Mapping
from typing import Any

from mopeq_hub.report import Markdown, code, escape
from mopeq_hub.resources import templates


def render(name: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """The text of a bundled template; `filters` are those it needs beside `code`. A missing value is a fault."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(templates()),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        # `autoescape` knows HTML alone; this escapes for Markdown and HTML.
        finalize=lambda value: value if isinstance(value, Markdown) else escape(value),
    )
    environment.filters |= {"code": code, **filters}
    return environment.get_template(name).render(**values)
