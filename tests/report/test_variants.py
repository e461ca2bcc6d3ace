"""The card of a repo with several budgets: all of them side by side on main, the way back on a branch."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mopeq_hub.hub import FolderDestination, HubDestination
from mopeq_hub.recipe import Recipe
from mopeq_hub.report import summary
from mopeq_hub.report.card import write_card
from mopeq_hub.report.plots import draw
from tests.hub import cards as hub_rules
from tests.report.documents import check, fidelity, manifest

HUB, FOLDER = HubDestination("someone/shapes"), FolderDestination("/made/my shapes")


def several(top1: float = 0.9932) -> tuple[dict[str, Any], dict[str, Any]]:
    """mopeq.json and fidelity.json of main with three budgets, of which it holds the second."""
    made = manifest(recipe=Recipe(allocator="knapsack", budget="3.0bpw"))
    proof = fidelity(made, accuracy=True)
    proof["variants"] = [
        {
            "name": name,
            "publication": made["publication"] if name == "3.0bpw" else f"mopeq-{name}",
            "bytes": size,
            "experts_bpw": bpw,
            "kl": {"mean": kl, "p99": 10 * kl},
            "top1_agreement": share,
            "perplexity_ratio": 1 + kl,
            "accuracy": 0.94,
        }
        for name, size, bpw, kl, share in (
            ("2.5bpw", 1_300_000, 2.49, 0.09, 0.94),
            ("3.0bpw", 1_510_000, 2.99, 0.04137, top1),
            ("3.5bpw", 1_700_000, 3.48, 0.02, 0.98),
        )
    ]
    check(proof, "fidelity.schema.json")
    return made, proof


def card(folder: Path, documents: tuple[Any, Any], destination: HubDestination | FolderDestination) -> str:
    (folder / "plots").mkdir(exist_ok=True)
    for name in ("bits.png", "size_fidelity.png"):
        (folder / "plots" / name).touch()
    repo_id, branch = destination.repo_id, destination.branch
    write_card(folder, *documents, {"license": "mit"}, repo_id, None, branch, destination.address)
    text = (folder / "README.md").read_text("utf-8")
    assert hub_rules.validate(text, "model").errors == []
    return text[text.index("\n# ") + 1 :]


def test_main_sets_all_of_them_side_by_side(tmp_path: Path) -> None:
    text = card(tmp_path, several(), HUB)
    page = "https://huggingface.co/someone/shapes/tree"
    assert (
        f"""## Variants

| branch | size | bits per expert weight | KL divergence | top-1 agreement | perplexity ratio | accuracy |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |
| [`2.5bpw`]({page}/2.5bpw) | 1.30 MB | 2.49 | 0.09 | 94.0% | 1.09 | 94.0% |
| [`3.0bpw`]({page}/3.0bpw), **recommended** | 1.51 MB | 2.99 | 0.0414 | 99.3% | 1.04 | 94.0% |
| [`3.5bpw`]({page}/3.5bpw) | 1.70 MB | 3.48 | 0.02 | 98.0% | 1.02 | 94.0% |

The recommended one, which `main` holds, is the smallest that agrees with the original on at least 99% of the tokens. \
Another is loaded by the name of its branch:

```python
model = AutoModelForImageTextToText.from_pretrained("someone/shapes", revision="2.5bpw")
```

![Size against KL divergence from the original](plots/size_fidelity.png)

## Load it
"""
        in text
    )
    assert text.count("size_fidelity.png") == 1


def test_where_none_is_close_it_says_so(tmp_path: Path) -> None:
    assert (
        "None agrees with the original on 99% of the tokens; the recommended one, which `main` holds, is that with the "
        "least KL divergence. Another is"
    ) in card(tmp_path, several(top1=0.96), HUB)


def test_folders_are_linked_from_where_they_lie(tmp_path: Path) -> None:
    text = card(tmp_path, several(), FOLDER)
    assert "| folder | size |" in text
    assert "| [`2.5bpw`](../my%20shapes%402.5bpw/README.md) | 1.30 MB |" in text
    assert "which this folder holds, is the smallest" in text
    assert "of the tokens. Each is a folder beside this one.\n" in text


@pytest.mark.parametrize(
    ("destination", "main"),
    [(HUB, "https://huggingface.co/someone/shapes"), (FOLDER, "../my%20shapes/README.md")],
)
def test_a_branch_leads_back_to_main(
    destination: HubDestination | FolderDestination, main: str, tmp_path: Path
) -> None:
    made = manifest()
    text = card(tmp_path, (made, fidelity(made)), destination.variant("2.5bpw"))
    assert text.startswith("# shapes")
    assert text.splitlines()[0].endswith(" at 2.5bpw")
    assert f"This is the variant `2.5bpw`; [main]({main}) compares all of them.\n\n## Load it\n" in text
    assert text.count('revision="2.5bpw"') == (3 if destination is HUB else 0), "model, in both ways, and processor"


def test_the_plot_shows_them_too(tmp_path: Path) -> None:
    made, proof = several()
    (with_them,) = (path for path in draw(made, proof, tmp_path / "main") if path.name == "size_fidelity.png")
    del proof["variants"]
    (alone,) = (path for path in draw(made, proof, tmp_path / "alone") if path.name == "size_fidelity.png")
    assert with_them.read_bytes() != alone.read_bytes()


def test_a_terminal_and_a_workflow_page_show_them(capsys: pytest.CaptureFixture[str]) -> None:
    made, proof = several()
    Console(width=80).print(summary.variants_table(proof))
    shown = capsys.readouterr().out
    assert "3.0bpw, recommended" in shown
    assert "99.3%" in shown
    page = summary.step_summary(made, proof, "someone/shapes")
    first = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("|")]
    rows = [cell for cell in first if "bpw" in cell]
    assert rows == ["2.5bpw", "3.5bpw", "3.0bpw, recommended"]
