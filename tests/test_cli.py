"""The command line: every stage alone, quiet when piped, one JSON document for machines."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mopeq_hub import MopeqError, cli, pipeline


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert ended.value.code in (0, None), printed.err
    return printed.out


def test_each_stage_works_alone_from_what_the_one_before_left(
    shapes: Path,
    some_questions: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    folder, target = tmp_path / "repo", tmp_path / "target"
    manifest = json.loads(run(capsys, "quantize", shapes, folder, "--bits", "3,4", "--scope", "layer", "--json"))
    assert {bits for layer in manifest["experts"] for bits in layer["bits"]} == {3, 4}
    monkeypatch.setattr("mopeq_hub.benchmarks.run.version", lambda: None)
    asked: list[str | Path] = ["--questions", some_questions, "--no-compare", "--benchmarks", "mme"]
    fidelity = json.loads(run(capsys, "evaluate", folder, *asked, "--json"))
    assert fidelity["publication"] == manifest["publication"]
    assert [(each["name"], each["not_run"]) for each in fidelity["benchmarks"]["results"]] == [
        ("MME", "lmms-eval is not installed")
    ]
    assert "README.md" in run(capsys, "card", folder)
    assert "| MME | not run&#58; lmms-eval is not installed |" in (folder / "README.md").read_text()
    assert (folder / "plots" / "bits.png").is_file()
    assert "dry run" in run(capsys, "push", folder, target, "--dry-run")
    assert not target.exists()
    assert manifest["publication"] in run(capsys, "push", folder, target, "--no-space")
    assert not (tmp_path / "target-space").exists()
    assert "was updated" in run(capsys, "space", target)
    assert (tmp_path / "target-space" / "app.py").is_file()
    assert run(capsys, "check", target).count("ok ") == 8
    assert "| this publication |" in (tmp_path / "summary.md").read_text()
    run(capsys, "push", folder, target)
    assert "nothing to do" in run(capsys, "push", folder, target)


def test_a_card_from_before_the_measurement_is_not_pushed(publication: Path, tmp_path: Path) -> None:
    measured = (publication / "fidelity.json").read_text("utf-8")
    (publication / "fidelity.json").unlink()
    pipeline.card(publication)
    (publication / "fidelity.json").write_text(measured, "utf-8")
    with pytest.raises(MopeqError, match=r"written before it was measured; run `mopeq-hub card`"):
        pipeline.push(publication, str(tmp_path / "target"), space=False)
    assert not (tmp_path / "target").exists()
    pipeline.card(publication)
    assert pipeline.push(publication, str(tmp_path / "target"), space=False).changed


def test_publish_says_first_where_to(shapes: Path, published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["publish", str(shapes), "--recipe", "mopeq", "--to", str(published)])
    printed = capsys.readouterr()
    assert printed.err.splitlines()[0] == f"publishing {shapes} to the folder {published}"
    assert "nothing to do" in printed.out


def test_a_dry_run_of_publish_leaves_nothing(
    shapes: Path, some_questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out" / "model"
    printed = run(
        capsys,
        "publish",
        shapes,
        "--recipe",
        "mopeq",
        "--to",
        target,
        "--questions",
        some_questions,
        "--no-compare",
        "--dry-run",
        "--json",
    )
    publication = json.loads(printed)
    assert publication["commit"] is None
    assert publication["fidelity"]["kl"]["mean"] > 0
    assert list(tmp_path.glob("out/*")) == []


def test_plan_shows_sizes_and_the_bit_map_and_writes_nothing(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = run(capsys, "plan", shapes, "--recipe", "mopeq", "--save-profile", "profile.json")
    for words in ("original", "uniform 2 bits", "this recipe", "layer 3"):
        assert words in text
    planned = json.loads(run(capsys, "plan", shapes, "--recipe", "mopeq", "--json", "--profile", "profile.json"))
    sizes = {choice["name"]: choice["bytes"] for choice in planned["choices"]}
    assert sizes["uniform 2 bits"] < sizes["this recipe"] < sizes["uniform 4 bits"] < sizes["original"]
    assert sum(len(layer["bits"]) for layer in planned["manifest"]["experts"]) == 96
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def test_a_plan_of_what_is_found_by_running_the_model_says_so(shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run(capsys, "plan", shapes)
    assert "The bit map comes of running the model, by the signal fisher: `publish --dry-run` does that." in text
    assert "publishing: up to 2.01 GB of memory" in text
    planned = json.loads(run(capsys, "plan", shapes, "--json"))
    assert (planned["manifest"], planned["recipe"]["allocator"]) == (None, "measured")


def test_what_is_planned_is_what_is_written(shapes: Path, published: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = json.loads(run(capsys, "plan", shapes, "--recipe", "mopeq", "--json"))["manifest"]
    written: dict[str, Any] = json.loads((published / "mopeq.json").read_text())
    del written["provenance"]
    assert planned == {**written, "files": {}}
    stored = sum(path.stat().st_size for path in published.glob("*.safetensors"))
    assert 0 < stored - planned["sizes"]["published_bytes"] < 200_000, "what is over are the headers"


def test_quantizing_twice_gives_the_same_bytes(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [
        json.loads(
            run(capsys, "quantize", shapes, tmp_path / name, "--recipe", "mopeq", "--shard-size", "600000", "--json")
        )["files"]
        for name in ("one", "two")
    ]
    assert files[0] == files[1]
    assert sum(name.endswith(".safetensors") for name in files[0]) > 2
    assert (tmp_path / "one" / "mopeq.json").read_bytes() == (tmp_path / "two" / "mopeq.json").read_bytes()


def test_a_failed_check_has_exit_code_1(publication: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (publication / "tokenizer.json").unlink()
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(publication)])
    assert ended.value.code == 1
    assert "tokenizer.json is missing" in capsys.readouterr().out


def test_a_signature_is_made_and_verified(
    published: Path, keys: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys
    run(capsys, "push", published, tmp_path / "target", "--no-space", "--sign", private)
    assert "ok      signed, not verified" in run(capsys, "check", tmp_path / "target", "--no-load")
    printed = run(capsys, "check", tmp_path / "target", "--no-load", "--key", public)
    assert f"ok      it is signed by the key {public}" in printed
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", str(published), "--no-load", "--key", str(public)])
    assert ended.value.code == 1
    assert f"failed  it is signed by the key {public}: there is no model.sig" in capsys.readouterr().out


def test_help_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\nfrom mopeq_hub import cli\n"
        "try: cli.main(['publish', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'huggingface_hub'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"
    assert "--rest-bits" in printed


def test_importing_the_package_is_light() -> None:
    code = "import sys, mopeq_hub, mopeq_hub.cli; print('torch' in sys.modules, mopeq_hub.__version__)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.startswith("False ")


def test_optimum_cli_has_the_same_commands(shapes: Path) -> None:
    optimum = Path(sys.executable).with_name("optimum-cli")
    command = [str(optimum), "mopeq", "plan", str(shapes), "--recipe", "mopeq", "--bits", "2,4", "--json"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [choice["name"] for choice in json.loads(printed)["choices"]] == [
        "original",
        "uniform 2 bits",
        "uniform 4 bits",
        "this recipe",
    ]


def test_a_pipe_gets_no_bars_and_no_colours(shapes: Path) -> None:
    command = [sys.executable, "-m", "mopeq_hub.cli", "plan", str(shapes)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in ended.stdout + ended.stderr
    assert ended.stderr == ""


def test_python_has_the_same_verbs(shapes: Path, tmp_path: Path) -> None:
    from mopeq_hub import Recipe, plan, quantize

    recipe = Recipe(bits=(2, 4))
    planned = plan(str(shapes), recipe)
    written = quantize(str(shapes), tmp_path / "repo", recipe)
    assert planned.manifest is not None
    assert planned.manifest["experts"] == written.manifest["experts"]
