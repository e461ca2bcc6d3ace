"""The files that are not Python are found."""

from pathlib import Path

import pytest

from mopeq_hub import resources


def test_templates_and_spaces_are_found() -> None:
    assert (resources.templates() / "model_card.md.jinja").is_file()
    assert (resources.spaces() / "compare").is_dir()


def test_an_installed_package_uses_what_its_wheel_brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_bundled" / "templates").mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", tmp_path)
    assert resources.templates() == tmp_path / "_bundled" / "templates"
