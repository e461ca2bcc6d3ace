"""What a terminal and a workflow run's page show."""

import io
import re
from typing import Any

from markdown_it import MarkdownIt
from rich.console import Console

from mopeq_hub.recipe import Recipe
from mopeq_hub.report.summary import Heatmap, plan_table, result_lines, step_summary
from tests.report.documents import fidelity, manifest


def shown(renderable: Any, width: int = 80, colours: bool = False) -> str:
    """What a terminal of this width prints."""
    screen = io.StringIO()
    Console(file=screen, width=width, force_terminal=colours, color_system="truecolor" if colours else None).print(
        renderable
    )
    return screen.getvalue()


PLANNED = [
    {"name": "original", "bytes": 5_753_024, "experts_bpw": None},
    {"name": "uniform 3 bits", "bytes": 1_720_000, "experts_bpw": 3.297},
    {"name": "this recipe", "bytes": 1_510_000, "experts_bpw": 3.3},
]


def test_the_plan_sets_sizes_side_by_side() -> None:
    text = shown(plan_table("a/b", PLANNED, manifest()))
    for words in ("a/b", "original", "uniform 3 bits", "29.9%", "this recipe", "1.51 MB", "32 at 2 bits"):
        assert words in text


def test_a_plan_without_sensitivities_has_sizes_only() -> None:
    text = shown(plan_table("a/b", PLANNED[:2], None))
    assert "uniform 3 bits" in text
    assert "experts:" not in text


def test_the_bit_map_is_digits_where_there_is_no_colour() -> None:
    made = manifest(dense=1)
    lines = shown(Heatmap(made)).splitlines()
    assert lines[0] == "layer 0 no routed experts"
    assert lines[1] == "layer 1 " + "".join(map(str, made["experts"][0]["bits"]))
    assert "\x1b[" in shown(Heatmap(made), colours=True)


def test_projections_that_differ_have_a_line_each() -> None:
    made = manifest(dense=1, recipe=Recipe(granularity="projection"))
    lines = shown(Heatmap(made)).splitlines()
    assert lines[0] == "layer 0 no routed experts"
    assert [line[: len("layer 0 down ")] for line in lines[1:4]] == ["layer 1 gate ", "        up   ", "        down "]
    down = [widths if isinstance(widths, int) else widths["down"] for widths in made["experts"][0]["bits"]]
    assert lines[3].endswith("down " + "".join(map(str, down)))
    assert len(lines) == 1 + 3 * 3
    wide = shown(Heatmap(manifest(2, 128, recipe=Recipe(granularity="projection")))).splitlines()
    assert len(wide) == 2 * 3
    assert all(re.search(r"\d+x\d", line) for line in wide)
    assert "projections:" in shown(plan_table("a/b", PLANNED, made))
    assert "Routed experts, by projection: " in step_summary(made, None, "out/shapes")


def test_a_layer_too_wide_for_the_terminal_becomes_a_bar_with_counts() -> None:
    made = manifest(3, 128)
    lines = shown(Heatmap(made), width=80).splitlines()
    bits = made["experts"][0]["bits"]
    assert len(lines) == 3
    assert lines[0].endswith(" ".join(f"{bits.count(width)}x{width}" for width in (2, 3, 4)))


def test_the_result_names_what_was_measured() -> None:
    made = manifest()
    text = shown(result_lines(made, fidelity(made, by_blocks=True, accuracy=True), "out/[bold]shapes"))
    for words in ("out/[bold]shapes", "1.51 MB", "3.30", "0.0414 nats", "96.3%", "94.2%", "block by block"):
        assert words in text
    assert "not measured" in shown(result_lines(made, None))


def test_the_result_names_who_made_it_in_which_run() -> None:
    run = "https://github.com/alice/models/actions/runs/4711"
    made = manifest(provenance={"who": "alice", "when": "2025-06-15T15:06:40Z", "run": run})
    assert f"by alice on 2025-06-15 15:06:40 UTC, run {run}" in shown(result_lines(made, None), width=120)
    made["provenance"] |= {"who": None, "run": None}
    assert "made             on 2025-06-15 15:06:40 UTC" in shown(result_lines(made, None))


def test_a_name_cannot_steer_the_terminal() -> None:
    made = manifest()
    made["source"]["name"] = "\x1b[2Jgone[/]"
    table = plan_table(made["source"]["name"], PLANNED, made)
    assert "\x1b" not in shown(table) + shown(result_lines(made, None))


def test_the_step_summary_is_a_markdown_table_with_a_link() -> None:
    made = manifest()
    text = step_summary(made, fidelity(made, by_blocks=True, accuracy=True), "https://huggingface.co/a/b")
    assert "| this publication | 1.51 MB | 3.30 | 0.0414 | 96.3% | 1.02 | 94.2% |" in text
    assert "[`https://huggingface.co/a/b`](https://huggingface.co/a/b)" in text
    assert "not measured" in step_summary(made, None, "out/shapes")


def test_benchmarks_have_both_models_numbers_or_a_reason_wherever_results_are_shown() -> None:
    made = manifest()
    proof = fidelity(made, benchmarks=True)
    text = shown(result_lines(made, proof), width=160)
    assert (
        "mme_perception_score 1,462, the original has 10,476; mme_cognition_score 301.2, the original has 298.6" in text
    )
    assert "TextVQA          not run: it failed (KeyError)" in text
    page = MarkdownIt("commonmark").render(step_summary(made, proof, "out/shapes"))
    assert "<li>TextVQA: not run: it failed (KeyError)</li>" in page
    assert "<li>own: exact_match 0.9, the original has 1 (40 questions)</li>" in page


def test_the_step_summary_of_a_hub_model_leads_to_all_that_belongs_to_it() -> None:
    made = manifest(source={"name": "x/y", "kind": "hub", "card": {}, "commit": "5b" * 20})
    page, space = "https://huggingface.co/a/b", "https://huggingface.co/spaces/a/b"
    text = step_summary(made, None, "a/b", page, space)
    assert "From [`x/y`](https://huggingface.co/x/y) at `5b5b5b5b5b5b` to [`a/b`](https://huggingface.co/a/b)" in text
    assert f"Its Space is [`a/b`]({space})." in text
    assert f"![bits]({page}/resolve/main/plots/bits.png)" in text


def test_hostile_names_stay_text_in_the_step_summary() -> None:
    made = manifest()
    proof = fidelity(made)
    hostile = "`<script>` [a](javascript:x) | \n\n# b"
    made["source"]["name"] = made["publication"] = proof["comparisons"][0]["name"] = hostile
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(step_summary(made, proof, hostile))
    assert "<script>" not in html
    assert "<a " not in html
    assert html.count("<h") == 1 + html.count("<head")
    assert html.count("<td") == 7 * 5
