"""Text from strangers and models as text: what Markdown and HTML would read as markup becomes character references."""

import html
import re

_MARKUP = re.compile(r"[\\`*_{}\[\]<>()#|~$&:@]")
_ADDRESS = re.compile(r"https://[A-Za-z0-9._~/?#&=%+@-]+")


def escaped(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", " ".join(str(text).split()))


def linked(words: str, address: str | None) -> str:
    """A Markdown link where the address is a plain https one; else only the words."""
    shown = escaped(words)
    return f"[{shown}]({address})" if is_https(address) else shown


def is_https(address: object) -> bool:
    return isinstance(address, str) and _ADDRESS.fullmatch(address) is not None


def in_html(text: object) -> str:
    """Text that HTML shows as it is, line ends and all (white-space: pre-wrap)."""
    return html.escape(str(text))
