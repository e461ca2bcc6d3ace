"""Whatever a test of the reports draws has all its words within the picture."""

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    from matplotlib.text import Text

    real = Text.draw
    beyond: dict[Text, str] = {}

    def draw(text: Any, renderer: Any, *args: Any, **options: Any) -> None:
        real(text, renderer, *args, **options)
        beyond.pop(text, None)
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            if min(box.x0, box.y0) < 0 or box.x1 > renderer.width or box.y1 > renderer.height:
                beyond[text] = text.get_text()

    monkeypatch.setattr(Text, "draw", draw)
    yield
    assert not [*beyond.values()]
