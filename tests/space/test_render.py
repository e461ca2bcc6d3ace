"""A rendered Space: complete, valid by the Hub's rules, the same bytes every time, and safe from the names in it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import SpaceCard
from markdown_it import MarkdownIt

from mopeq_hub import space
from mopeq_hub.errors import MopeqError
from mopeq_hub.space import render_space, run_local
from mopeq_hub.version import __version__
from tests.hub import cards as hub_rules
from tests.report.documents import HUB_COMMIT, manifest

HOSTILE = 'evil"\n---\nlicense: mit # <script>alert(1) [x](javascript:alert(1)) \u2028 *b* 🔬'


def from_hub(name: str = "maker/shapes-moe-vl") -> dict[str, Any]:
    return manifest(source={"name": name, "kind": "hub", "revision": "main", "commit": HUB_COMMIT})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def publication(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "publication.json").read_text("utf-8"))


def test_the_readme_configures_a_gradio_space_that_names_both_models(tmp_path: Path) -> None:
    render_space(tmp_path, from_hub(), "me/shapes-moe-vl-MoPEQ", "maker/shapes-moe-vl", "apache-2.0")
    readme = (tmp_path / "README.md").read_text("utf-8")
    data = SpaceCard(readme).data.to_dict()
    assert hub_rules.validate(readme, "space").answer() == {"errors": [], "warnings": []}
    expected = {
        "title": "shapes-moe-vl, original and quantized",
        "sdk": "gradio",
        "sdk_version": "6.31.0",
        "app_file": "app.py",
        "pinned": False,
        "license": "apache-2.0",
        "suggested_hardware": "cpu-basic",
        "models": ["me/shapes-moe-vl-MoPEQ", "maker/shapes-moe-vl"],
    }
    assert {name: data[name] for name in expected} == expected
    assert {"emoji", "colorFrom", "colorTo", "tags", "short_description"} <= data.keys()
    assert "[`me/shapes-moe-vl-MoPEQ`](https://huggingface.co/me/shapes-moe-vl-MoPEQ)" in readme


def test_the_publication_pins_both_models(tmp_path: Path) -> None:
    render_space(tmp_path, from_hub(), "me/shapes-moe-vl-MoPEQ", "maker/shapes-moe-vl", None)
    assert publication(tmp_path) == {
        "model": "me/shapes-moe-vl-MoPEQ",
        "revision": "mopeq-c4c4c4c4c4c4-5b5b5b5b5b5b",
        "original": "maker/shapes-moe-vl",
        "original_revision": HUB_COMMIT,
        "auto_class": "AutoModelForImageTextToText",
        "takes_pictures": True,
        "brings_code": False,
        "trusts_code": False,
        "title": "shapes-moe-vl, original and quantized",
        "publication": "mopeq-c4c4c4c4c4c4-5b5b5b5b5b5b",
        "run": None,
    }


def test_the_space_has_what_computes_with_packed_weights(tmp_path: Path) -> None:
    render_space(tmp_path, from_hub(), "me/shapes-moe-vl-MoPEQ", "maker/shapes-moe-vl", None)
    assert f"mopeq-hub=={__version__}\n" in (tmp_path / "requirements.txt").read_text("utf-8")


def test_the_readme_leads_to_the_source_commit_and_to_the_run_that_made_it(tmp_path: Path) -> None:
    run = "https://github.com/me/publications/actions/runs/42"
    made = {**from_hub(), "provenance": {"run": run}}
    render_space(tmp_path, made, "me/shapes-moe-vl-MoPEQ", "maker/shapes-moe-vl", None)
    readme = (tmp_path / "README.md").read_text("utf-8")
    assert publication(tmp_path)["run"] == run
    assert f"[this workflow run]({run})" in readme
    assert f"[`{HUB_COMMIT[:12]}`](https://huggingface.co/maker/shapes-moe-vl/tree/{HUB_COMMIT})" in readme


@pytest.mark.parametrize(
    "provenance",
    [None, {}, {"run": None}, {"run": 7}, "run", {"run": "javascript:alert(1)"}, {"run": "http://example.org/1"},
     {"run": "https://example.org/) <script>"}],
)  # fmt: skip
def test_a_run_that_is_no_plain_address_is_left_out(tmp_path: Path, provenance: Any) -> None:
    render_space(tmp_path, {**from_hub(), "provenance": provenance}, "me/shapes-moe-vl-MoPEQ", None, None)
    assert publication(tmp_path)["run"] is None
    assert "workflow run" not in (tmp_path / "README.md").read_text("utf-8")


def test_what_the_space_installs_is_what_it_was_tested_with(tmp_path: Path) -> None:
    render_space(tmp_path, manifest(), "../published", None, None)
    constraints = (Path(__file__).parents[2] / ".ci" / "constraints.txt").read_text("utf-8").split("\n")
    wanted = [line for line in (tmp_path / "requirements.txt").read_text("utf-8").splitlines() if line[0] != "#"]
    assert len(wanted) == 9
    assert {*wanted} - {f"mopeq-hub=={__version__}"} <= set(constraints)
    assert f"gradio=={SpaceCard.load(tmp_path / 'README.md').data.to_dict()['sdk_version']}" in constraints


def test_folders_stay_folders_and_their_paths_stay_out_of_the_readme(tmp_path: Path) -> None:
    render_space(tmp_path, manifest(), "../published", "/home/somebody/shapes-moe-vl", "mit")
    said, readme = publication(tmp_path), (tmp_path / "README.md").read_text("utf-8")
    assert (said["model"], said["original"]) == ("../published", "/home/somebody/shapes-moe-vl")
    assert (said["revision"], said["original_revision"]) == (None, None)
    assert "models" not in SpaceCard(readme).data.to_dict()
    assert "/home" not in readme


def test_a_space_on_the_hub_leaves_out_an_original_that_only_this_machine_has(tmp_path: Path) -> None:
    render_space(tmp_path, manifest(), "me/shapes-moe-vl-MoPEQ", "/home/somebody/shapes-moe-vl", "mit")
    assert publication(tmp_path)["original"] is None
    assert all(b"/home/somebody" not in content for content in contents(tmp_path).values())


def test_rendered_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        render_space(tmp_path / name, from_hub(), "me/shapes-moe-vl-MoPEQ", "maker/shapes-moe-vl", "mit")
    render_space(tmp_path / "two", from_hub(), "me/shapes-moe-vl-MoPEQ", "maker/shapes-moe-vl", "mit")
    first = contents(tmp_path / "one")
    assert first == contents(tmp_path / "two")
    assert {"app.py", "worker.py", "requirements.txt", "README.md", "publication.json"} <= first.keys()


@pytest.mark.parametrize("hub_name", [True, False])
def test_a_hostile_name_stays_a_name(tmp_path: Path, hub_name: bool) -> None:
    model = "me/quantized" if hub_name else f"./{HOSTILE}"
    render_space(tmp_path, from_hub(HOSTILE), model, HOSTILE, HOSTILE)
    readme = (tmp_path / "README.md").read_text("utf-8")
    data = SpaceCard(readme).data.to_dict()
    assert hub_rules.validate(readme, "space").answer()["errors"] == []
    assert "license" not in data
    assert data["title"].startswith('evil" --- license: mit')
    prose = MarkdownIt("commonmark").render(readme.split("\n---\n", 1)[1])
    assert "<script" not in prose
    assert "href" not in prose.replace('href="https://huggingface.co/me/quantized"', "")


def test_a_licence_that_is_other_has_the_name_and_the_link_that_the_hub_asks_for(tmp_path: Path) -> None:
    render_space(tmp_path, from_hub(), "me/shapes-moe-vl-MoPEQ", None, "other")
    readme = (tmp_path / "README.md").read_text("utf-8")
    assert hub_rules.validate(readme, "space").answer()["errors"] == []
    assert SpaceCard(readme).data.to_dict()["license_link"] == "https://huggingface.co/me/shapes-moe-vl-MoPEQ"


def test_running_a_folder_without_a_space_says_so(tmp_path: Path) -> None:
    with pytest.raises(MopeqError, match=r"holds no app\.py"):
        run_local(tmp_path, None)


def test_running_without_gradio_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "app.py").touch()
    monkeypatch.setattr(space.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MopeqError, match=r"pip install 'mopeq-hub\[space\]'"):
        run_local(tmp_path, None)


def test_an_app_without_its_publication_ends_in_words(tmp_path: Path) -> None:
    render_space(tmp_path, manifest(), "../published", None, None)
    (tmp_path / "publication.json").unlink()
    ended = subprocess.run([sys.executable, "app.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "publication.json" in ended.stderr
    assert "Traceback" not in ended.stderr
