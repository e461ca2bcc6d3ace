"""Bad input ends in one clear line that says what, where and what to do; nothing is half-published, the source never
changes."""

import errno
import hashlib
import json
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mopeq_hub import MopeqError, Recipe, cli, pipeline
from mopeq_hub.model import open_model
from mopeq_hub.quantization import shards
from tests.conftest import edit_json
from tests.shelf import Stages

Damaged = Callable[[Callable[[Path], None]], Path]
FIRST = "model-00001-of-00003.safetensors"
INDEX = "model.safetensors.index.json"
EXPERT = "language_model.model.layers.0.mlp.experts.0.down_proj.weight"


def contents(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 1) -> str:
    """The one line that a failing command prints."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    printed = capsys.readouterr()
    assert ended.value.code == status
    lines = [line for line in printed.err.splitlines() if not line.startswith(("publishing ", "The experts' "))]
    assert len(lines) == 1, printed.err
    assert "Traceback" not in printed.err
    return lines[0]


def pickle_only(folder: Path) -> None:
    for shard in folder.glob("*.safetensors*"):
        shard.unlink()
    torch.save({"weight": torch.zeros(2)}, folder / "weights.pt")


def missing_shard(folder: Path) -> None:
    (folder / FIRST).unlink()


def index_disagrees(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({EXPERT: "model-00003-of-00003.safetensors"}))


def index_lacks_tensor(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].pop(EXPERT))


def truncated(folder: Path) -> None:
    data = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(data[:-1000])


def header_too_long(folder: Path) -> None:
    data = (folder / FIRST).read_bytes()
    (folder / FIRST).write_bytes(struct.pack("<Q", 1 << 60) + data[8:])


def header_not_json(folder: Path) -> None:
    data = bytearray((folder / FIRST).read_bytes())
    data[8:12] = b"oops"
    (folder / FIRST).write_bytes(data)


def overlapping(folder: Path) -> None:
    """A header that gives two tensors the same bytes."""
    data = (folder / FIRST).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    names = [name for name in header if header[name].get("shape") == [128, 64]]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    text = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    (folder / FIRST).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def change_tensor(folder: Path, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    shard = folder / json.loads((folder / INDEX).read_text())["weight_map"][name]
    tensors = load_file(shard)
    tensors[name] = change(tensors[name]).contiguous()
    save_file(tensors, shard, metadata={"format": "pt"})


def with_value(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def put(tensor: torch.Tensor) -> torch.Tensor:
        changed = tensor.clone()
        changed[0, 0] = value
        return changed

    return put


def not_a_number(folder: Path) -> None:
    change_tensor(folder, EXPERT, with_value(float("nan")))


def infinite(folder: Path) -> None:
    change_tensor(folder, "language_model.model.embed_tokens.weight", with_value(float("inf")))


def wrong_shape(folder: Path) -> None:
    change_tensor(folder, EXPERT, lambda tensor: tensor[:, :32])


def dot_dot(folder: Path) -> None:
    edit_json(folder / INDEX, lambda index: index["weight_map"].update({EXPERT: "../elsewhere.safetensors"}))


def more_experts_than_counted(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["text_config"].update(num_local_experts=20))


def fewer_experts_than_counted(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["text_config"].update(num_local_experts=26))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_processor(folder: Path) -> None:
    (folder / "processor_config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", "utf-8")


def dense(folder: Path) -> None:
    def change(config: dict) -> None:
        config["text_config"] = {"model_type": "llama", "hidden_size": 128}

    edit_json(folder / "config.json", change)


def unsupported_mixture(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["text_config"].update(model_type="llama"))


def unknown_kind(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(model_type="nosuch"))


def code_of_its_own(folder: Path) -> None:
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    code = {"AutoConfig": "modeling.Config", "AutoModelForImageTextToText": "modeling.Model"}
    edit_json(folder / "config.json", lambda config: config.update(model_type="nosuch", auto_map=code))


def unknown_architecture(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(architectures=["NoSuchModel"]))


DAMAGES = {
    pickle_only: ("weights.pt", "pickle", "safetensors"),
    missing_shard: (FIRST, "lacks", "download"),
    index_disagrees: (INDEX, EXPERT, "model-00003"),
    index_lacks_tensor: (INDEX, EXPERT, "no file"),
    truncated: (FIRST, "damaged", "download"),
    header_too_long: (FIRST, "header claims", "download"),
    header_not_json: (FIRST, "not JSON", "download"),
    overlapping: (FIRST, "begins at byte", "download"),
    not_a_number: (EXPERT, "NaN", "use another"),
    infinite: ("embed_tokens", "infinite", "use another"),
    wrong_shape: (EXPERT, "[128, 32]", "[128, 64]"),
    dot_dot: ("../elsewhere.safetensors", "outside the repo"),
    more_experts_than_counted: ("counts 20", "config"),
    fewer_experts_than_counted: ("[24, 128]", "[26, 128]", "config.json"),
    no_config: ("copied-model has no config.json",),
    no_tokenizer: ("copied-model has no tokenizer",),
    no_processor: ("copied-model has no processor_config.json",),
    broken_config: ("config.json", "not JSON"),
    dense: ("llava over llama", "not a mixture of experts"),
    unsupported_mixture: ("copied-model", "text model llama", "auto-round's loader", "not supported"),
    unknown_kind: ("'nosuch' of copied-model", "transformers", "install"),
    code_of_its_own: ("'nosuch' of copied-model", "modeling.Model", "add --trust-remote-code"),
    unknown_architecture: ("NoSuchModel", "transformers"),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGES.items(), ids=[damage.__name__ for damage in DAMAGES])
def test_a_damaged_source_is_refused_in_one_line(
    damage: Callable[[Path], None],
    words: tuple[str, ...],
    damaged: Damaged,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = damaged(damage)
    before = contents(source)
    line = fails(["publish", str(source), "--recipe", "mopeq", "--to", str(tmp_path / "out" / "model")], capsys)
    assert all(word in line for word in words), line
    assert "; " in line, "the line should say what to do"
    assert contents(source) == before
    assert list(tmp_path.glob("out/*")) == []


def test_a_group_size_that_does_not_divide_names_one_that_does(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(["quantize", str(shapes), str(tmp_path / "out"), "--group-size", "128"], capsys)
    assert "[128, 64]" in line
    assert "--group-size 64" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantize", "no/such/place", "x"], ("no/such/place", "neither a folder")),
        (["plan", "./missing"], ("./missing",)),
        (["quantize", "SHAPES", "x", "--bits", "2,5"], ("2, 5", "2, 3, 4, 8")),
        (["quantize", "SHAPES", "x", "--bits", "two"], ("whole numbers",)),
        (["quantize", "SHAPES", "x", "--bits", ""], ("bits",)),
        (["quantize", "SHAPES", "x", "--group-size", "48"], ("--group-size", "64")),
        (["quantize", "SHAPES", "x", "--scope", "galaxy"], ("--scope", "model, layer")),
        (["quantize", "SHAPES", "x", "--probes", "0", "--estimator", "hutchinson"], ("--probes",)),
    ],
)
def test_wrong_usage_has_exit_code_2(
    arguments: list[str], words: tuple[str, ...], shapes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails([str(shapes) if argument == "SHAPES" else argument for argument in arguments], capsys, status=2)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "x", "--no-such-option"], "No such option: --no-such-option"),
        (["plan"], "Missing argument 'MODEL'"),
        (["bake"], "No such command 'bake'"),
        (["plan", "x", "--probes", "many"], "--probes"),
        (["publish", "x", "--to", ""], "the destination is empty"),
        (["space", "x", "--port", "80"], "--port is for --local"),
        (["plan", __file__], "is a file"),
    ],
)
def test_a_command_line_that_makes_no_sense_is_one_line_too(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = fails(arguments, capsys, status=2)
    assert words in line
    assert "; " in line


def test_a_full_disk_is_named_and_leaves_nothing(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shards.os, "pwrite", full)
    line = fails(["publish", str(shapes), "--recipe", "mopeq", "--to", str(tmp_path / "out" / "model")], capsys)
    assert "disk is full" in line
    assert list(tmp_path.glob("out/*")) == []


def test_a_folder_that_holds_something_else_is_not_overwritten(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for command in (
        ["publish", "--recipe", "mopeq", str(shapes), "--to"],
        ["quantize", "--recipe", "mopeq", str(shapes)],
    ):
        line = fails([*command, str(tmp_path / "thesis")], capsys)
        assert "thesis" in line
    assert contents(tmp_path / "thesis").keys() == {str(tmp_path / "thesis" / "chapter.txt")}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("not json", ("line 1",)),
        ('{"question": "q"}', ("line 1",)),
        ('{"image": "gone.png", "question": "q", "answer": "a"}', ("gone.png",)),
        ("", ("no question",)),
    ],
)
def test_a_questions_file_is_read_before_anything_is_measured(
    line: str,
    words: tuple[str, ...],
    publication: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shapes: Path,
) -> None:
    (tmp_path / "questions.jsonl").write_text(line + "\n")
    said = fails(
        [
            "publish",
            str(shapes),
            "--recipe",
            "mopeq",
            "--to",
            str(tmp_path / "new"),
            "--questions",
            str(tmp_path / "questions.jsonl"),
        ],
        capsys,
    )
    assert all(word in said for word in words), said
    assert not (tmp_path / "new").exists()


def test_a_token_is_never_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "hf_" + "a1B2c3D4e5F6g7H8"
    monkeypatch.setenv("HF_TOKEN", secret)
    line = fails(["plan", f"./{secret}"], capsys, status=2)
    assert secret not in line
    assert "***" in line


def as_header(folder: Path) -> None:
    """Leave of each file what a download that was broken off has: its header, and the length that it would have."""
    for path in folder.glob("*.safetensors"):
        size = path.stat().st_size
        with open(path, "r+b") as file:
            end = 8 + int.from_bytes(file.read(8), "little")
            file.truncate(end)
            file.truncate(size)


def test_headers_without_weights_are_planned_by_their_sizes_and_never_quantized(
    damaged: Damaged, tmp_path: Path
) -> None:
    folder, said = damaged(as_header), Stages()
    plan = pipeline.plan(str(folder), Recipe(), progress=said)
    assert (plan.profile, plan.manifest) == (None, None)
    assert [choice["name"] for choice in plan.choices] == ["original", *(f"uniform {bits} bits" for bits in (2, 3, 4))]
    (line,) = said.said
    assert re.fullmatch(r"copied-model has headers without weights \(\S+ is empty\), so there is no bit map, .*", line)
    with pytest.raises(MopeqError, match=r"model-0000\d-of-00003.safetensors of copied-model is empty where"):
        pipeline.quantize(str(folder), tmp_path / "out", Recipe())
    assert not (tmp_path / "out").exists()


def test_experts_that_are_zero_are_weights_all_the_same(damaged: Damaged) -> None:
    def zero(folder: Path) -> None:
        for path in folder.glob("*.safetensors"):
            content = path.read_bytes()
            end = 8 + int.from_bytes(content[:8], "little")
            path.write_bytes(content[:end] + bytes(len(content) - end))

    assert open_model(str(damaged(zero))).absent is None
