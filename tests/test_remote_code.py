"""A model whose classes are in its repo alone: published where its code is trusted, refused where it is not, and of its
code only what its commit pins is ever run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file

from mopeq_hub import MopeqError, Recipe, pipeline, publish, workplace
from mopeq_hub.catalog import Entry, read_catalog
from mopeq_hub.check import check
from mopeq_hub.fidelity.measure import Way, measure
from mopeq_hub.fidelity.tried import check_parts
from mopeq_hub.manifest import bitmap_of, read_manifest
from mopeq_hub.model import open_model
from mopeq_hub.profiles import profile_of
from mopeq_hub.progress import Quiet
from mopeq_hub.questions import Question, read_questions
from mopeq_hub.questions.inputs import Encoder
from mopeq_hub.space import render_space
from mopeq_hub.staleness import stale_for
from tests import tiny
from tests.conftest import edit_json, made_once
from tests.families.test_published_form import IMAGE, PLAIN_LOAD, ROUNDING, answers_of, unpacked
from tests.hub import HubServer, client_environment, client_pointed_at
from tests.test_bad_input import fails

FILES = {f"{name}_kimi_like.py" for name in ("configuration", "experts", "modeling", "processing", "tower")}
RECIPE = Recipe(group_size=32)
ASKED = Question(IMAGE, "how many cyan shapes are there ?", "one")
LOADS = "it loads, every weight in its place"


@pytest.fixture(scope="module")
def source(shared: Path) -> Path:
    return made_once(shared / "kimi-vl-like", lambda folder: void(tiny.kimi_vl_like(folder, shards=3)))


@pytest.fixture(scope="module")
def made(shared: Path, source: Path, few: Path) -> Path:
    """The model published to a folder; tests read it and must not change it."""

    def make(folder: Path) -> None:
        publish(str(source), str(folder), RECIPE, questions=few, compare=False, space=False, trust_remote_code=True)

    return made_once(shared / "kimi-vl-like-MoPEQ", make)


@pytest.fixture(scope="module")
def few(shared: Path) -> Path:
    """A file of two questions on pictures and two without."""

    def make(folder: Path) -> None:
        asked = [json.loads(line) for line in (tiny.SHAPES / "calibration.jsonl").read_text("utf-8").splitlines()]
        kinds = [[each for each in asked if bool(each["image"]) == pictured][:2] for pictured in (True, False)]
        shutil.copytree(tiny.SHAPES / "images", folder / "images")
        (folder / "few.jsonl").write_text("\n".join(json.dumps(each) for kind in kinds for each in kind), "utf-8")

    return made_once(shared / "few-of-both", make) / "few.jsonl"


@pytest.fixture
def copied(source: Path, tmp_path: Path) -> Path:
    """A copy of the model that a test may damage."""
    return Path(shutil.copytree(source, tmp_path / "copied"))


@pytest.fixture
def publication(made: Path, tmp_path: Path) -> Path:
    """A copy of the publication that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "publication"))


def void(_: object) -> None:
    """For a function that makes something and gives it."""


def marked(folder: Path, name: str = "modeling_kimi_like.py") -> Path:
    """Have a file of code leave a mark where it is run; where that is."""
    mark = folder.parent / "it-ran"
    with open(folder / name, "a", encoding="utf-8") as file:
        file.write(f"\nopen({str(mark)!r}, 'w').close()\n")
    return mark


# Without the flag


def test_without_the_flag_it_is_refused_in_one_line_before_weights_or_code_are_asked_for(
    hub: HubServer, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_repo("maker/kimi", source)
    for command in (["plan"], ["publish", "--to", str(tmp_path / "out")], ["study", "--out", str(tmp_path / "study")]):
        line = fails([command[0], "maker/kimi", *command[1:]], capsys)
        assert "'kimi_vl' of maker/kimi" in line
        assert "modeling_kimi_like.KimiLikeForConditionalGeneration" in line
        assert "add --trust-remote-code" in line
    asked = {request.path.rpartition("/")[2] for request in hub.requests(method="GET") if "/resolve/" in request.path}
    assert asked <= {"config.json"}
    assert not hub.requests(r"/storage/")


def test_a_kind_that_transformers_has_needs_no_code_of_its_repo_and_runs_none(
    shapes: Path, tmp_path: Path, few: Path
) -> None:
    folder = Path(shutil.copytree(shapes, tmp_path / "copied", ignore=shutil.ignore_patterns("images", "*.jsonl")))
    (folder / "theirs.py").write_text("", "utf-8")
    mark = marked(folder, "theirs.py")
    code = {"AutoConfig": "theirs.Config", "AutoModelForImageTextToText": "other/repo--theirs.Model"}
    edit_json(folder / "config.json", lambda config: config.update(auto_map=code))
    repo = pipeline.quantize(str(folder), tmp_path / "out", RECIPE, trust_remote_code=True)
    assert not mark.exists()
    assert "remote_code" not in repo.manifest
    assert not list(repo.folder.glob("*.py"))


# With it


def test_what_is_published_loads_with_its_code_and_computes_with_the_dequantized_weights(
    source: Path, made: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(made)
    bitmap = bitmap_of(manifest)
    assert set(bitmap.bits.values()) == {2, 3, 4}
    inputs = Encoder(source, trusted=True).rows([ASKED], with_answer=True)[0].inputs
    assert "pixel_values" in inputs
    with torch.inference_mode():
        expected = unpacked(source, made, bitmap, RECIPE)(**inputs, use_cache=False).logits
    original, ours = answers_of([source, made], inputs, tmp_path)
    assert ours["home"] == original["home"] == "transformers_modules"
    assert ours["trouble"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
    largest = expected.abs().max()
    assert (ours["logits"] - expected).abs().max() < ROUNDING * largest
    assert (ours["logits"] - original["logits"]).abs().max() > 1000 * ROUNDING * largest


def test_it_brings_the_code_that_was_run_and_says_so(source: Path, made: Path) -> None:
    manifest = read_manifest(made)
    assert {path.name for path in made.glob("*.py")} == FILES == set(manifest["remote_code"]["files"])
    for name in FILES:
        assert (made / name).read_bytes() == (source / name).read_bytes()
        assert manifest["files"][name]["sha256"] == manifest["remote_code"]["files"][name]
    for name in ("config.json", "preprocessor_config.json"):
        said, theirs = (json.loads((folder / name).read_text("utf-8"))["auto_map"] for folder in (made, source))
        assert said == theirs
    card = (made / "README.md").read_text("utf-8")
    assert "Its code is the source's own, copied into this repo unchanged: [`configuration_kimi_like.py`](" in card
    loaded = '.from_pretrained("path/to/this/folder", device_map="auto", trust_remote_code=True)'
    assert f"AutoModelForCausalLM{loaded}" in card
    assert 'AutoProcessor.from_pretrained("path/to/this/folder", trust_remote_code=True)' in card
    assert "before from_pretrained" not in card
    assert 'model = mopeq_hub.load("path/to/this/folder", trust_remote_code=True)' in card
    assert " --trust-remote-code " in card, "in the command that makes it again"


def test_only_code_of_the_pinned_commit_is_run_and_published(
    source: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = Path(shutil.copytree(source, tmp_path / "newer"))
    mark = marked(newer)
    monkeypatch.setenv("MOPEQ_HOME", str(tmp_path / "mopeq-home"))
    with HubServer(tmp_path / "server") as server, client_pointed_at(server, tmp_path / "home"):
        monkeypatch.setenv("HF_TOKEN", server.token("alice"))
        pinned = server.add_repo("alice/kimi", source)
        server.commit("alice/kimi", newer)
        # Passing through, so that the proof rides along and its loader sees headers alone.
        publication = publish(
            f"alice/kimi@{pinned}", "alice/kimi-MoPEQ", RECIPE, questions=few, stream=True, trust_remote_code=True
        )
        assert publication.fidelity is not None
        assert publication.fidelity["method"] == "blocks"
        published = server.files("alice/kimi-MoPEQ")
        assert {name for name in published if name.endswith(".py")} == FILES
        assert all(published[name] == (source / name).read_bytes() for name in FILES)
        said = json.loads(server.files("alice/kimi-MoPEQ", repo_type="space")["publication.json"])
        assert (said["trusts_code"], said["brings_code"], said["takes_pictures"]) == (True, False, True)
        assert said["original_revision"] == pinned
        assert [finding.trouble for finding in check("alice/kimi-MoPEQ")] == [None] * 8
        assert not mark.exists()
        # By its name on the Hub as from a copy of it.
        copy = snapshot_download("alice/kimi-MoPEQ", local_dir=tmp_path / "copy")
        inputs = Encoder(source, trusted=True).rows([ASKED], with_answer=True)[0].inputs
        torch.save(inputs, tmp_path / "inputs.pt")
        environment = client_environment(server, tmp_path / "plain-home")
        command = [sys.executable, *map(str, (PLAIN_LOAD, tmp_path / "inputs.pt", tmp_path / "out.pt"))]
        subprocess.run([*command, f"alice/kimi-MoPEQ@{publication.name}", copy], env=environment, check=True)
        named, local = torch.load(tmp_path / "out.pt")
        assert named["trouble"] == {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": []}
        assert torch.equal(named["logits"], local["logits"])


def test_a_folders_commit_pins_its_code_where_that_is_trusted(source: Path, copied: Path) -> None:
    (copied / "notes.py").write_text("# no part of the model", "utf-8")
    commits = [open_model(str(folder), trust_remote_code=True).source.commit for folder in (source, copied)]
    assert commits[0] == commits[1]
    with open(copied / "experts_kimi_like.py", "a", encoding="utf-8") as file:
        file.write("\n# another word\n")
    assert open_model(str(copied), trust_remote_code=True).source.commit != commits[0]


def test_code_that_has_changed_is_run_as_it_is_now(copied: Path) -> None:
    first = open_model(str(copied), trust_remote_code=True)
    path = copied / "experts_kimi_like.py"
    text = path.read_text("utf-8").replace("nn.functional.silu(", "-nn.functional.silu(")
    path.write_text(text, "utf-8")
    second = open_model(str(copied), trust_remote_code=True)
    given = torch.rand(2, 64)
    assert torch.equal(first.layout.routing.gated(given), -second.layout.routing.gated(given))


def test_a_folder_is_measured_again_only_where_its_code_is_trusted_and_is_the_sources(
    source: Path, publication: Path, few: Path
) -> None:
    (publication / ".mopeq").mkdir(exist_ok=True)
    with pytest.raises(MopeqError, match="add --trust-remote-code"):
        pipeline.evaluate(publication, few, original=str(source), compare=False)
    mark = marked(publication)
    with pytest.raises(MopeqError, match=r"modeling_kimi_like\.py in .* is not the source's"):
        pipeline.evaluate(publication, few, original=str(source), compare=False, trust_remote_code=True)
    assert not mark.exists()
    shutil.copyfile(source / "modeling_kimi_like.py", publication / "modeling_kimi_like.py")
    before = json.loads((publication / "fidelity.json").read_text("utf-8"))
    again = pipeline.evaluate(publication, few, original=str(source), compare=False, trust_remote_code=True)
    assert again["kl"] == before["kl"]


# What runs it


def test_block_by_block_it_has_the_fidelity_of_the_whole_model(source: Path, made: Path, few: Path) -> None:
    model, manifest = open_model(str(source), trust_remote_code=True), read_manifest(made)
    way = Way(blocks=True, dtype="float32")
    blocks = measure(model, made, manifest, read_questions(few), way, Quiet())
    whole = json.loads((made / "fidelity.json").read_text("utf-8"))
    assert (blocks["method"], whole["method"]) == ("blocks", "whole")
    assert blocks["kl"]["mean"] == pytest.approx(whole["kl"]["mean"], rel=1e-4)
    assert blocks["top1_agreement"] == whole["top1_agreement"]


def test_what_cannot_be_run_part_by_part_is_told_before_any_weight_comes(copied: Path, few: Path) -> None:
    questions = read_questions(few)
    check_parts(open_model(str(copied), trust_remote_code=True), questions)
    path = copied / "modeling_kimi_like.py"
    path.write_text(
        path.read_text("utf-8").replace("return (hidden + ", "return [hidden + ").replace("(hidden)),)", "(hidden))]")
    )
    with pytest.raises(MopeqError, match="copied cannot be run part by part: decoder layers of KimiLikeFor"):
        check_parts(open_model(str(copied), trust_remote_code=True), questions)


def test_signals_that_run_it_see_every_expert(
    source: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A home of its own: what other tests keep in theirs comes and goes meanwhile.
    monkeypatch.setenv("MOPEQ_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("mopeq_hub.sensitivity.by_running.TOKENS", 600)
    model = open_model(str(source), trust_remote_code=True)
    frequency = profile_of(model, Recipe(group_size=32, signal="frequency"), Quiet())
    for layer in (1, 2):
        shares = [sum(frequency.by_layer()[layer][index : index + 1]) for index in range(8)]
        assert sum(shares) == pytest.approx(8)
    fisher = Recipe(group_size=32, signal="fisher", allocator="knapsack", budget="0.5x", rest_bits="auto")
    costs = profile_of(model, fisher, Quiet())
    for parts in costs.experts.values():
        for values in parts.values():
            assert values[0] > values[-1] > 0, "fewer bits cost more, and gradients came to each"
    assert all(values[0] > 0 for values in costs.rest.values())
    assert not list(workplace.cache("work").glob(".mopeq-*")), "copies of code went with the processes"


def packed(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    return {name: value for name, value in tensors.items() if name.endswith(".qweight")}


@pytest.mark.parametrize(("quantizer", "other"), [("gptq", "search"), ("signround", "rtn")])
def test_calibrated_quantizers_reach_its_experts(
    quantizer: Any, other: Any, source: Path, made: Path, few: Path, tmp_path: Path
) -> None:
    model = open_model(str(source), trust_remote_code=True)
    recipe = replace(RECIPE, quantizer=quantizer, iterations=2)
    tuned = pipeline.quantize(model, tmp_path / "tuned", recipe, calibration=few)
    assert tuned.manifest["calibration"]["with_picture"] == 2
    assert tuned.manifest["calibration"]["unreached_experts"] == 0
    # What it would be if nothing had been seen of it.
    plain = made
    if other != "search":
        plain = pipeline.quantize(model, tmp_path / "plain", replace(RECIPE, quantizer=other)).folder
    before, after = (packed(folder) for folder in (plain, tuned.folder))
    assert not [name for name in before if torch.equal(before[name], after[name])], "each was tuned"


def test_the_space_runs_its_code_because_the_publication_says_so(source: Path, made: Path, tmp_path: Path) -> None:
    render_space(tmp_path / "space", read_manifest(made), str(made), str(source), None)
    said = json.loads((tmp_path / "space" / "publication.json").read_text("utf-8"))
    assert (said["trusts_code"], said["brings_code"], said["takes_pictures"]) == (True, False, True)
    question = {"picture": str(IMAGE), "question": "which ?", "length": 4, "temperature": 0, "seed": 0}
    command = [sys.executable, str(tmp_path / "space" / "worker.py"), said["model"], "--auto-class", said["auto_class"]]
    heard = subprocess.run(
        [*command, "--pictures", "--trusted"], input=json.dumps(question) + "\n", capture_output=True, text=True,
        check=False, cwd=tmp_path, env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    ).stdout  # fmt: skip
    told = [json.loads(line) for line in heard.splitlines()]
    assert [each["event"] for each in told if each["event"] != "text"] == ["ready", "done"], told


def test_the_space_is_opened_here_only_where_the_code_is_trusted(made: Path) -> None:
    with pytest.raises(MopeqError, match="made by code that it brings; read it, and add --trust-remote-code"):
        pipeline.run_space(str(made))


# The check


def troubles(folder: Path, **options: Any) -> dict[str, str]:
    return {finding.subject: finding.trouble for finding in check(str(folder), **options) if finding.trouble}


def test_check_says_what_code_it_brings_and_runs_that_only_where_it_is_trusted(publication: Path) -> None:
    untrusted, trusted = (check(str(publication), trust_remote_code=way) for way in (False, True))
    assert not [finding for finding in (*untrusted, *trusted) if finding.trouble]
    assert "modeling_kimi_like.py" in untrusted[0].subject
    assert untrusted[0].subject.endswith("so it was not loaded, --trust-remote-code tries that")
    assert LOADS not in [finding.subject for finding in untrusted]
    assert LOADS in [finding.subject for finding in trusted]
    mark = marked(publication)
    check(str(publication))
    found = troubles(publication, trust_remote_code=True)
    assert not mark.exists(), "what is not the code that was trusted is not run to see whether it loads"
    assert "modeling_kimi_like.py is not the code that was run" in found[LOADS]


def tampered(folder: Path) -> None:
    marked(folder, "tower_kimi_like.py")


def lost(folder: Path) -> None:
    (folder / "experts_kimi_like.py").unlink()


def more_code(folder: Path) -> None:
    (folder / "more.py").write_text("", "utf-8")


def elsewhere(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["auto_map"].update(AutoModel="evil/repo--m.Model"))


def beside(folder: Path) -> None:
    (folder / "processor_config.json").write_text('{"auto_map": {"AutoProcessor": "processing_other.Processor"}}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (tampered, "tower_kimi_like.py is not the code that was run to make and prove it"),
        (lost, "experts_kimi_like.py, which its model is made by, is missing"),
        (more_code, "more.py is code, and no part of the model's own"),
        (elsewhere, "'evil/repo--m.Model', which is no class in a file beside it"),
        (beside, "processor_config.json points to processing_other.py, which is no part of the model's own code"),
    ],
)
def test_check_finds_any_other_code(damage: Callable[[Path], None], words: str, publication: Path) -> None:
    damage(publication)
    assert words in troubles(publication, load=False)["it brings no foreign code and no pickles"]


# What is refused


def points(name: str, **classes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        edit_json(folder / name, lambda content: content["auto_map"].update(classes))

    return change


def imports(line: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "experts_kimi_like.py"
        path.write_text(f"{line}\n{path.read_text('utf-8')}", "utf-8")

    return change


def no_model_class(folder: Path) -> None:
    only = {"AutoConfig": "configuration_kimi_like.KimiLikeConfig"}
    edit_json(folder / "config.json", lambda config: config.update(auto_map=only))


def link_out(folder: Path) -> None:
    (folder.parent / "outside.py").write_text("", "utf-8")
    (folder / "tower_kimi_like.py").unlink()
    (folder / "tower_kimi_like.py").symlink_to(folder.parent / "outside.py")


def own_generate(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit", "utf-8")


def frequencies_of_its_own(folder: Path) -> None:
    path = folder / "modeling_kimi_like.py"
    text = path.read_text("utf-8").replace("DeepseekV3RotaryEmbedding(config)", "Turning(config)")
    path.write_text(
        f"{text}\n\nclass Turning(DeepseekV3RotaryEmbedding):\n    def __init__(self, config):\n"
        "        super().__init__(config)\n        del self.original_inv_freq\n",
        "utf-8",
    )


def other_words(folder: Path) -> None:
    path = folder / "modeling_kimi_like.py"
    text = path.read_text("utf-8").replace("        use_cache=None,\n        **_,\n", "")
    path.write_text(text.replace("use_cache=use_cache,\n", ""), "utf-8")


def fused(folder: Path) -> None:
    path = folder / "experts_kimi_like.py"
    path.write_text(path.read_text("utf-8").replace("nn.ModuleList([", "nn.Sequential(*["), "utf-8")


REFUSED = [
    (points("config.json", AutoModel="other/repo--m.Model"), "'other/repo--m.Model', which is no class in a file"),
    (points("config.json", AutoModel="../up.Model"), "'../up.Model', which is no class in a file beside it"),
    (points("preprocessor_config.json", AutoImageProcessor="deep.er.C"), "the auto_map of preprocessor_config.json"),
    (imports("from ..outside import x"), "experts_kimi_like.py of copied imports '..outside', which is no file"),
    (imports("from .nowhere import x"), "copied lacks nowhere.py, which its code needs"),
    (imports("import nosuchpackage"), "the code of copied imports nosuchpackage, which is not installed"),
    (imports("raise SystemExit('now')"), "does not run with transformers 5.23.0: SystemExit: now"),
    (imports("def ("), "the code of copied is not this Python's"),
    (no_model_class, "names no class for AutoConfig, or none for AutoModelForImageTextToText"),
    (link_out, "tower_kimi_like.py of copied is a link to a file outside of it"),
    (own_generate, "copied generates text by code of its own"),
    (frequencies_of_its_own, "leaves language_model.model.rotary_emb.inv_freq without values"),
    (other_words, "KimiLikeForConditionalGeneration, which comes with copied, knows no use_cache"),
    (fused, "no list of single ones beside a router"),
]


@pytest.mark.parametrize(("damage", "words"), REFUSED)
def test_what_is_not_pinned_or_does_not_work_is_refused_in_one_line(
    damage: Callable[[Path], None], words: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copied)
    assert words in fails(["plan", str(copied), "--recipe", "mopeq", "--trust-remote-code"], capsys)


# Catalogs


def test_an_entry_of_a_catalog_says_that_code_is_trusted(source: Path, made: Path) -> None:
    text = json.dumps([{"model": str(source), "to": str(made), "recipe": RECIPE.to_dict(), "trust_remote_code": True}])
    (entry,) = read_catalog(text)
    assert isinstance(entry, Entry)
    assert entry.trust_remote_code
    assert read_catalog(json.dumps([entry.written()])) == [entry]
    assert stale_for(entry) == ([], set())


@pytest.fixture(autouse=True)
def _no_cache_of_the_users() -> Iterator[None]:
    """transformers copies code to a folder of this process's own, and nothing of it to the user's cache."""
    yield
    from transformers import dynamic_module_utils as dynamic

    assert ".mopeq-" in dynamic.HF_MODULES_CACHE
