"""The card is reviewed as text: three whole cards lie in `golden`.

After a change that is meant, write them anew and read the difference:

    MOPEQ_REWRITE_GOLDEN=1 python -m pytest tests/report/test_card.py
"""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from markdown_it.token import Token

from mopeq_hub.recipe import Recipe
from mopeq_hub.report.card import PLOTS, inherited_license, recipe_flags, write_card
from mopeq_hub.source import card_metadata
from tests.hub import cards as hub_rules
from tests.report.documents import HUB_COMMIT, check, fidelity, manifest

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "](javascript:alert(1))",
    "[press](https://bad.example/)",
    "![seen](https://bad.example/)",
    "`</code><script>alert(1)</script>",
    "``` ``\n```\n<script>alert(1)</script>",
    "a\n\n# A heading\n\n- a list",
    "a | b | **c**",
    "https://bad.example/ www.bad.example me@bad.example",
    "&lt;script&gt; &#60;script&#62;",
    "\x1b[31mred\x07\u202e",
    "{{ 7 * 7 }} {% include 'x' %}",
    "---\nlicense: mit\n---",
]

Case = tuple[dict[str, Any], dict[str, Any] | None, dict[str, Any] | None, str | None, str | None]


def small_folder() -> Case:
    """A folder's small model, measured with questions."""
    made = manifest()
    proof = fidelity(made, accuracy=True, benchmarks=True)
    return (
        made,
        proof,
        {"license": "apache-2.0", "language": "en"},
        "someone/shapes-mopeq",
        "someone/shapes-mopeq-compare",
    )


def calibrated_on(sha256: str, unreached: int, bundled: bool = False) -> dict[str, Any]:
    """What a manifest says of calibration data."""
    counts = {"questions": 128, "with_picture": 74, "tokens": 2582}
    return {"bundled": bundled, "sha256": sha256, **counts, "unreached_experts": unreached}


def calibrated_folder() -> Case:
    """A folder's small model, tuned on a file of questions that did not reach every expert."""
    recipe = Recipe(quantizer="signround", iterations=40, calibration="ca" * 32)
    made = manifest(recipe=recipe, calibration=calibrated_on("ca" * 32, 3))
    return made, fidelity(made), {"license": "apache-2.0"}, None, None


def large_hub_model() -> Case:
    """A Hub model with a licence of its own and every choice made otherwise, measured block by block."""
    recipe = Recipe(
        (2, 3, 4, 8), estimator="hutchinson", probes=64, scope="layer", quantizer="rtn", group_size=128,
        symmetric=False, rest_bits=8, shard_size=5_000_000_000, seed=1,
    )  # fmt: skip
    source = {"name": "vendor/Large-VL-30B_A3B", "kind": "hub", "card": {}, "commit": HUB_COMMIT}
    names = [f"model.language_model.layers.{layer}.mlp.shared_expert_gate" for layer in range(1, 28)]
    made = manifest(
        28, 64, dense=1, recipe=recipe, expert_weights=28_991_029_248, rest_weights=2_100_000_000, source=source,
        rest={"bits": 8, "quantized": 196, "unquantized": names},
    )  # fmt: skip
    card = {
        "license": "other",
        "license_name": "vendor-community-1.0",
        "license_link": "LICENSE",
        "language": ["en", "zh", False],
        "pipeline_tag": "image-text-to-text",
    }
    return made, fidelity(made, by_blocks=True), card, "someone/Large-VL-30B_A3B-mopeq", None


def bare_minimum() -> Case:
    """A folder written for nobody yet: one width, nothing measured, nothing known of the source's card."""
    return manifest(2, 8, recipe=Recipe((4,), rest_bits=16)), None, None, None, None


def by_projection() -> Case:
    """A width for each projection, and for each layer outside the experts."""
    recipe = Recipe(allocator="knapsack", budget="0.25x", granularity="projection", rest_bits="auto")
    return manifest(recipe=recipe), None, {"license": "mit"}, "someone/shapes-mopeq", None


def by_layer() -> Case:
    """All experts of a layer alike."""
    return manifest(recipe=Recipe(granularity="layer")), None, {"license": "mit"}, "someone/shapes-mopeq", None


def tried() -> Case:
    """The best of several maps, by a signal that ran the model."""
    recipe = Recipe(
        signal="fisher", inputs="calibration", calibration="ca" * 32, allocator="measured", budget="3.297bpw",
        questions="9e" * 32,
    )  # fmt: skip
    groups = [
        {"name": "calibration", "rows": 128, "tokens": 2582},
        {"name": "recombined", "rows": 1508, "tokens": 30187},
    ]
    figures = {"fisher, by expert": 0.00016, "uniform 3 bits": 0.00028, "MoPEQ's map": 0.00079}
    maps = [
        {"name": name, "experts_bpw": 3.2969, "kl": kl, "top1_agreement": 0.999, "chosen": name.startswith("fisher")}
        for name, kl in figures.items()
    ]
    made = manifest(
        recipe=recipe,
        signal={"name": "fisher", "inputs": "calibration", "groups": groups},
        selection={"questions": {"name": "eval.jsonl", "sha256": "e5" * 32, "limit": 0}, "tried": maps},
    )
    return made, fidelity(made, accuracy=True), {"license": "mit"}, "someone/shapes-mopeq", None


_ALL = (small_folder, calibrated_folder, large_hub_model, bare_minimum, by_projection, by_layer, tried)
CASES = {case.__name__: case for case in _ALL}


def written(folder: Path, case: Case) -> str:
    """The card of a case, with those plots beside it that a run would have drawn."""
    (folder / "plots").mkdir(parents=True)
    errors = case[1] and case[1]["layers"]["errors"]
    for name in PLOTS:
        if {"size_fidelity.png": case[1], "layer_errors.png": errors}.get(name, True):
            (folder / "plots" / name).touch()
    write_card(folder, *case)
    return (folder / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", CASES)
def test_the_card_is_the_golden_one(name: str, tmp_path: Path) -> None:
    case = CASES[name]()
    check(case[0], "mopeq.schema.json")
    if case[1]:
        check(case[1], "fidelity.schema.json")
    text = written(tmp_path, case)
    golden = GOLDEN / f"{name}.md"
    if os.environ.get("MOPEQ_REWRITE_GOLDEN"):
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


@pytest.mark.parametrize("name", CASES)
def test_metadata_reads_back_and_keeps_the_hubs_rules(name: str, tmp_path: Path) -> None:
    text = written(tmp_path, CASES[name]())
    card = ModelCard.load(tmp_path / "README.md")
    assert str(card) == text
    assert card.data.to_dict() == card_metadata(text)
    findings = hub_rules.validate(text, "model")
    assert (findings.errors, findings.warnings) == ([], [])


def test_a_model_of_text_alone_is_loaded_with_its_tokenizer(tmp_path: Path) -> None:
    made, *others = small_folder()
    made["model"] |= {"task": "text-generation", "auto_class": "AutoModelForCausalLM"}
    text = written(tmp_path, (made, *others))  # type: ignore[arg-type]
    assert "from transformers import AutoModelForCausalLM, AutoTokenizer\n" in text
    assert 'tokenizer = AutoTokenizer.from_pretrained("someone/shapes-mopeq")' in text
    assert "AutoProcessor" not in text
    assert "picture = " not in text


def test_a_model_whose_loader_needs_help_is_loaded_after_the_line_that_gives_it(tmp_path: Path) -> None:
    made, *others = bare_minimum()
    assert "before from_pretrained" not in written(tmp_path / "plain", (made, *others))  # type: ignore[arg-type]
    made["model"] |= {"model_type": "llama4"}
    text = written(tmp_path, (made, *others))  # type: ignore[arg-type]
    assert "auto-round, weighs what comes out of Llama 4's experts" in text
    assert "pip install -U transformers auto-round mopeq-hub\n```" in text
    assert "```python\nimport mopeq_hub  # before from_pretrained\nfrom transformers" in text


def test_of_a_model_of_several_parts_it_says_which_is_quantized_and_asks_for_text(tmp_path: Path) -> None:
    made, *others = small_folder()
    made["model"] |= {"task": "any-to-any", "auto_class": "AutoModelForMultimodalLM"}
    made["model"]["parts"] = {"speaker": "thinker", "beside": ["talker", "code2wav"]}
    text = written(tmp_path, (made, *others))  # type: ignore[arg-type]
    assert "So are `talker` and `code2wav`: what is quantized is its thinker." in text
    assert "model.generate(**inputs, return_audio=False, thinker_max_new_tokens=64)" in text
    assert "from transformers import AutoModelForMultimodalLM, AutoProcessor\n" in text


def test_metadata_of_a_hub_source(tmp_path: Path) -> None:
    written(tmp_path, large_hub_model())
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model == "vendor/Large-VL-30B_A3B"
    assert data["base_model_relation"] == "quantized"
    assert data.license_link == f"https://huggingface.co/vendor/Large-VL-30B_A3B/blob/{HUB_COMMIT}/LICENSE"
    assert data.language == ["en", "zh", "no"]
    assert data.tags is not None
    assert data.tags[-4:] == ["2-bit", "3-bit", "4-bit", "8-bit"]


def test_metadata_of_a_folder_names_no_base_model_and_has_the_measured_numbers(tmp_path: Path) -> None:
    written(tmp_path, small_folder())
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.base_model is None
    assert data.eval_results is not None
    measured = {result.metric_type: result.metric_value for result in data.eval_results}
    benchmarks = {"mme_perception_score": 1461.9, "mme_cognition_score": 301.25, "exact_match": 0.9}
    assert measured == {"kl_divergence": 0.04137, "top1_agreement": 0.9632, "accuracy": 0.9425, **benchmarks}
    limited = {result.dataset_name: result.dataset_args for result in data.eval_results[3:]}
    assert limited == {"MME": {"limit": 500}, "own": None}


def test_a_number_that_is_not_finite_is_said_and_not_published_as_one(tmp_path: Path) -> None:
    made, proof, *others = small_folder()
    assert proof is not None
    proof["kl"] = {"mean": float("inf"), "p99": float("inf")}
    text = written(tmp_path, (made, proof, *others))  # type: ignore[arg-type]
    assert "kl_divergence" not in text
    assert "not finite nats on average" in text


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize("kind", ["hub", "folder"])
def test_hostile_text_stays_text(hostile: str, kind: str, tmp_path: Path) -> None:
    made, proof, *_ = large_hub_model()
    assert proof is not None
    plain = {"license": "other", "license_name": "x", "license_link": "LICENSE"}
    made["source"]["kind"] = kind
    (tmp_path / "calm").mkdir()
    (tmp_path / "calm" / "LICENSE").touch()
    expected = markup(written(tmp_path / "calm" / "card", (made, proof, plain, None, None)))

    made["source"]["name"] = made["rest"]["unquantized"][0] = made["signal"]["name"] = hostile
    made["versions"] = {hostile: hostile}
    made["tool"]["version"] = made["model"]["auto_class"] = made["publication"] = hostile
    proof["inputs"]["name"] = proof["comparisons"][0]["name"] = proof["loading"]["original_dtype"] = hostile
    card = {"license": "other", "license_name": hostile, "license_link": hostile, "language": [hostile]}
    found = markup(written(tmp_path / "hostile", (made, proof, card, None, None)))

    assert found["headings"][1:] == expected["headings"][1:]
    assert found["html"] == []
    assert set(found["links"]) <= {*expected["links"], "https://arxiv.org/abs/2509.02512"}
    assert found["images"] == expected["images"]
    assert found["fences"] == expected["fences"]
    assert found["columns"] == expected["columns"]
    assert hub_rules.validate((tmp_path / "hostile" / "README.md").read_text("utf-8"), "model").errors == []


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_provenance_is_neither_markup_nor_a_link(hostile: str, tmp_path: Path) -> None:
    case = small_folder()
    expected = markup(written(tmp_path / "calm", case))
    case[0]["provenance"] = {"who": hostile, "when": hostile, "run": hostile}
    assert markup(written(tmp_path / "hostile", case)) == expected


def test_provenance_leads_to_the_account_and_the_run(tmp_path: Path) -> None:
    case = small_folder()
    run = "https://github.com/alice/models/actions/runs/4711"
    case[0]["provenance"] = {"who": "alice", "when": "2025-06-15T15:06:40Z", "run": run}
    assert {"https://huggingface.co/alice", run} <= {*markup(written(tmp_path, case))["links"]}


def markup(text: str) -> dict[str, list[Any]]:
    """What a reader's browser would be given: headings, HTML, targets of links and images, languages of code blocks."""
    body = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    tokens = list(flat(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(body)))
    levels = [token.tag for token in tokens if token.type == "heading_open"]
    return {
        "headings": levels,
        "html": [token.content for token in tokens if token.type.startswith("html")],
        "links": [token.attrs["href"] for token in tokens if token.type == "link_open"],
        "images": [token.attrs["src"] for token in tokens if token.type == "image"],
        "fences": [token.info for token in tokens if token.type == "fence"],
        "columns": [token.type for token in tokens if token.type in ("tr_open", "td_open", "th_open")],
    }


def flat(tokens: list[Token]) -> Iterator[Token]:
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def test_the_card_says_when_the_measured_questions_were_the_calibration_data(tmp_path: Path) -> None:
    made, proof, *others = calibrated_folder()
    assert proof is not None
    words = "These are the questions that the weights were calibrated on"
    assert words not in written(tmp_path / "others", (made, proof, *others))  # type: ignore[arg-type]
    made["calibration"] = calibrated_on(proof["inputs"]["sha256"], 0, bundled=True)
    text = written(tmp_path / "same", (made, proof, *others))  # type: ignore[arg-type]
    assert words in text
    assert "Each of the 96 experts was reached" in text
    assert "--calibration" not in text


def test_the_card_of_gptq_names_its_method(tmp_path: Path) -> None:
    recipe = Recipe(quantizer="gptq", calibration="ca" * 32)
    made = manifest(recipe=recipe, calibration=calibrated_on("ca" * 32, 1))
    text = written(tmp_path, (made, None, None, None, None))
    assert "[GPTQ](https://arxiv.org/abs/2210.17323)" in text
    assert "Of the 96 experts, these tokens did not reach 1;" in text
    assert "--quantizer gptq --calibration path/to/calibration.jsonl" in text


def test_the_command_line_names_every_choice_that_is_not_the_default() -> None:
    recipe = large_hub_model()[0]["recipe"]
    flags = (
        "--recipe mopeq --bits 2,3,4,8 --estimator hutchinson --probes 64 --scope layer --quantizer rtn "
        "--group-size 128 --asymmetric --rest-bits 8 --shard-size 5000000000 --seed 1"
    )
    assert shlex.join(recipe_flags(Recipe.from_dict(recipe))) == flags
    assert recipe_flags(Recipe()) == ["--recipe", "mopeq", "--bits", "2,3,4"]
    assert recipe_flags(Recipe((4,))) == ["--bits", "4"]


def test_only_plots_that_exist_are_shown(tmp_path: Path) -> None:
    write_card(tmp_path, *small_folder())
    assert "plots/" not in (tmp_path / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("card", "inherited"),
    [
        ({}, {}),
        ({"license": "mit"}, {"license": "mit"}),
        ({"license": ["mit", "cc-by-4.0"]}, {"license": ["mit", "cc-by-4.0"]}),
        ({"license": 7}, {}),
        ({"license": "Proprietary <b>"}, {}),
        ({"license": "other", "license_link": "https://vendor.example/terms"}, {}),
        (
            {"license": "other", "license_name": "x"},
            {"license": "other", "license_name": "x", "license_link": "https://huggingface.co/vendor/Large-VL-30B_A3B"},
        ),
    ],
)
def test_a_licence_is_inherited_where_the_hub_would_take_it(
    card: dict[str, Any], inherited: dict[str, Any], tmp_path: Path
) -> None:
    assert inherited_license(large_hub_model()[0], card, tmp_path) == inherited


def test_a_folders_own_licence_is_linked_to_the_file_that_came_with_it(tmp_path: Path) -> None:
    card = {"license": "other", "license_name": "x", "license_link": "LICENSE.txt"}
    assert inherited_license(manifest(), card, tmp_path) == {}
    (tmp_path / "LICENSE").touch()
    assert inherited_license(manifest(), card, tmp_path) == {**card, "license_link": "LICENSE"}


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("---\nlicense: mit\n---\n# A model", {"license": "mit"}),
        ("\ufeff---\r\nlicense: mit\r\n---\r\n", {"license": "mit"}),
        ("# No front matter\n\n---\nlicense: mit\n---\n", {}),
        ("---\nlicense: [mit\n---\n", {}),
        ("---\n- a\n- list\n---\n", {}),
        ("---\nmade: 2020-13-45\n---\n", {}),
        ("---\nlicense: mit\n", {}),
        ("", {}),
    ],
)
def test_a_source_card_is_read_or_taken_as_empty(text: str, data: dict[str, Any]) -> None:
    assert card_metadata(text) == data
