"""Switch Transformers: who is who in an encoder and a decoder, what each is asked, and what is measured of it."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr

from mopeq_hub import Recipe, publish, quantize, workplace
from mopeq_hub.bitmap import BitMap, quantization_config
from mopeq_hub.calibration import inputs_of, load
from mopeq_hub.check import check
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Expert
from mopeq_hub.fidelity.answers import Exam
from mopeq_hub.fidelity.logits import forward
from mopeq_hub.fidelity.trial_worker import Bench
from mopeq_hub.fidelity.trials import alone
from mopeq_hub.manifest import read_manifest
from mopeq_hub.model import Model, open_model
from mopeq_hub.planning import checked_needs, plan
from mopeq_hub.quantization.calibrated import check_memory, input_name
from mopeq_hub.quantization.gptq import collect
from mopeq_hub.questions import Question, read_questions
from mopeq_hub.questions.inputs import Encoder, Row, batches
from mopeq_hub.sensitivity import fisher
from mopeq_hub.sensitivity.activity import COLLECTORS, rows_of
from tests import tiny
from tests.conftest import edit_json

ASKED = [Question(None, f"how many {each} shapes are there ?", "one") for each in ("cyan", "red", "red or cyan")]
JOB: dict[str, Any] = {"group_size": 32, "symmetric": True, "search": True, "seed": 0, "widths": [3], "rest": []}
ENCODER, DECODER = "encoder.block", "decoder.block"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.switch_transformers(tmp_path_factory.mktemp("switch") / "source")


@pytest.fixture(scope="module")
def model(source: Path) -> Model:
    return open_model(str(source), named=False)


@pytest.fixture
def live(source: Path) -> Any:
    return load({"folder": str(source), "auto_class": "AutoModelForSeq2SeqLM"}).requires_grad_(False)


@pytest.fixture(scope="module")
def rows(source: Path) -> list[Row]:
    return Encoder(source).rows(ASKED, with_answer=True)


def modules(model: Model) -> dict[int, str]:
    """Names of the experts modules by layer."""
    return {module.layer: module.name for module in model.layout.modules}


def test_the_decoders_layers_are_counted_on_from_the_encoders(model: Model) -> None:
    layout = model.layout
    assert (layout.task, layout.auto_class) == ("text2text-generation", "AutoModelForSeq2SeqLM")
    assert (layout.layer_count, layout.experts_per_token) == (6, 1)
    assert modules(model) == {
        1: f"{ENCODER}.1.layer.1.mlp.experts",
        3: f"{ENCODER}.3.layer.1.mlp.experts",
        5: f"{DECODER}.1.layer.2.mlp.experts",
    }
    assert {expert: [matrix.name for matrix in parts] for expert, parts in layout.experts.items()}[Expert(5, 7)] == [
        f"{DECODER}.1.layer.2.mlp.experts.expert_7.{name}" for name in ("wi", "wo")
    ]
    assert layout.layer_of[f"{DECODER}.0.layer.2.mlp.wo.weight"] == 4
    assert {matrix.name.rpartition(".")[2] for matrix in layout.rest} == {"q", "k", "v", "o", "wi", "wo"}
    assert layout.routing.trouble == ""
    assert layout.routing.norms[5] == f"{DECODER}.1.layer.2.layer_norm.weight"
    # The chosen expert's weight is what the softmax over all gives it.
    assert not layout.routing.normalized
    assert layout.routing.gated(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]


def test_routers_are_linear_layers_and_stay_as_they_are(model: Model) -> None:
    routers = {name.removesuffix(".weight") for name in model.layout.routing.routers.values()}
    assert routers <= set(model.layout.never_quantized)
    config = quantization_config(model.layout, BitMap.uniform(model.layout, 3), Recipe(group_size=32, rest_bits=8))
    assert config["block_name_to_quantize"] == f"{ENCODER},{DECODER}"
    linears = {*routers, *(matrix.name for matrix in model.layout.matrices)}
    first = {
        name: next(rule["bits"] for key, rule in config["extra_config"].items() if re.search(key, name))
        for name in linears
    }
    kinds = Counter((".experts." in name, bits) for name, bits in first.items())
    assert kinds == {(True, 3): 48, (False, 8): len(model.layout.rest), (False, 16): 3}
    assert all(first[name] == 16 for name in routers)


def test_the_encoder_reads_the_question_and_the_answer_is_compared_where_the_decoder_says_it(
    source: Path, live: Any, rows: list[Row]
) -> None:
    encoder, row = Encoder(source), rows[0]
    assert encoder.decode(row.inputs["input_ids"][0]) == "user : how many cyan shapes are there ? assistant :"
    assert row.ids[0, 0] == live.config.decoder_start_token_id
    answer = row.ids[:, row.prompt :]
    assert encoder.tokenizer.decode(answer[0]).split() == ["one", "</s>"]
    assert (row.length, row.tokens) == (3, 3 + row.inputs["input_ids"].shape[1])

    # transformers makes the decoder's inputs of labels by itself.
    given = {name: row.inputs[name] for name in ("input_ids", "attention_mask")}
    expected = live(**given, labels=answer)
    ((_, logits),) = forward(live, [row])
    assert torch.allclose(logits, expected.logits[0], atol=1e-5)
    assert torch.nn.functional.cross_entropy(logits, answer[0]).item() == pytest.approx(expected.loss.item(), rel=1e-5)


def test_what_it_says_is_what_follows_the_decoders_first_token(source: Path, live: Any, rows: list[Row]) -> None:
    encoder = Encoder(source)
    said = live.generate(**{name: rows[0].inputs[name] for name in ("input_ids", "attention_mask")}, max_new_tokens=10)
    right = encoder.decode(said[0, 1:])
    assert right
    questions = [Question(None, ASKED[0].text, right), Question(None, ASKED[1].text, "nothing it would say")]
    assert Exam(encoder, questions, rows[:2]).accuracy(live) == 0.5


def test_made_questions_are_answered_by_the_decoder(model: Model, source: Path, live: Any, tmp_path: Path) -> None:
    job = {"inputs": "own", "calibration": None, "tokens": 300, "seed": 0}
    ((group),) = rows_of(model, live, Encoder(source), job, tmp_path)
    assert 300 <= sum(row.tokens for row in group.rows) < 400
    for row in group.rows[:4]:
        said = live.generate(input_ids=row.inputs["input_ids"], max_new_tokens=row.length - 1, do_sample=False)
        assert said.equal(row.ids)
        assert row.prompt == 1


@pytest.mark.parametrize("capacity", [64, 3])
def test_frequency_counts_the_tokens_that_an_expert_has_room_for(
    capacity: int, model: Model, live: Any, rows: list[Row]
) -> None:
    chosen: dict[int, Counter[int]] = {layer: Counter() for layer in modules(model)}
    for layer, name in modules(model).items():
        router = live.get_submodule(f"{name.removesuffix('.experts')}.router")
        router.expert_capacity = capacity
        # Flags [rows, tokens, experts].
        router.register_forward_hook(
            lambda _, __, found, layer=layer: chosen[layer].update(found[0].nonzero()[:, 2].tolist())
        )
    collector = COLLECTORS["frequency"](model, live, JOB)
    collector.begin()
    for part, inputs in batches(rows):
        collector.run(part, inputs)
    for layer, shares in collector.result()["experts"].items():
        counts = chosen[int(layer)]
        assert shares == pytest.approx([counts[index] * 8 / counts.total() for index in range(8)])
    read = sum(row.inputs["input_ids"].shape[1] for row in rows)
    assert (chosen[1].total() == read) is (capacity == 64)


def test_fisher_is_the_divergence_that_quantizing_one_expert_makes(
    model: Model, source: Path, live: Any, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fisher, "DRAWS", 48)
    row = rows[2]
    collector = COLLECTORS["fisher"](model, live, JOB)
    collector.begin()
    for part, inputs in batches([Row(0, row.inputs, row.prompt)]):
        collector.run(part, inputs)
    costs = collector.result()["costs"]
    job = {"folder": str(source), "auto_class": "AutoModelForSeq2SeqLM"}
    bench = Bench(model, load(job), [Row(0, row.inputs, row.prompt)], JOB, tmp_path)
    found = []
    for parts in model.layout.experts.values():
        truth = bench.measure(alone(parts, 3))["kl_mean"]
        found.append((sum(costs[matrix.name][0] for matrix in parts), truth))
    estimated, measured = np.array(found).T
    reached = measured > 1e-12
    assert 6 <= reached.sum() < len(reached)
    assert (estimated[~reached] < 1e-10).all()
    assert spearmanr(estimated[reached], measured[reached])[0] > 0.8
    assert 0.4 < estimated.sum() / measured.sum() < 2.5


def test_gptq_sums_what_goes_into_each_matrix_of_an_expert(model: Model, live: Any, rows: list[Row]) -> None:
    name = modules(model)[5]
    seen: dict[str, list[torch.Tensor]] = {}
    linears = [f"{name}.expert_{index}.{part}" for index in range(8) for part in ("wi", "wo")]
    linears.append(f"{DECODER}.1.layer.1.EncDecAttention.k")
    hooks = [
        live.get_submodule(each).register_forward_pre_hook(
            lambda _, args, each=each: seen.setdefault(each, []).append(args[0].flatten(0, -2))
        )
        for each in linears
    ]
    with torch.no_grad():
        for batch in inputs_of(rows):
            live(**batch)
    for hook in hooks:
        hook.remove()
    reached: dict[int, set[int]] = {5: set()}
    hessians = collect(model.layout, live, inputs_of(rows), [5], reached)
    named = {input_name(each) if each.endswith(".wi") else each: parts for each, parts in seen.items()}
    assert {each for each in named if ".experts." in each} == {each for each in hessians if ".experts." in each}
    assert len(reached[5]) == sum(each.endswith(".wi") for each in seen) > 1
    for each, parts in named.items():
        states = torch.cat(parts)
        assert torch.allclose(hessians[each], states.T @ states, rtol=1e-3, atol=1e-4)


def test_a_question_is_asked_as_a_gap_where_the_tokenizer_knows_gaps(source: Path, tmp_path: Path) -> None:
    from transformers import T5Tokenizer

    words = ["<pad>", "</s>", "<unk>", "\u2581", "\u2581who", "\u2581am", "\u2581I", "\u2581you"]
    tokenizer = T5Tokenizer(vocab=[(word, -float(place)) for place, word in enumerate(words)], extra_ids=4)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    encoder = Encoder(tmp_path)

    def read(question: Question) -> tuple[str, str]:
        (row,) = encoder.rows([question], with_answer=True)
        both = [encoder.tokenizer.convert_ids_to_tokens(ids[0]) for ids in (row.inputs["input_ids"], row.ids)]
        one, other = (" ".join(each).replace("\u2581", "") for each in both)
        return one, other

    assert read(Question(None, "who am I", "you")) == (
        "who am I <extra_id_0> </s>",
        "<pad> <extra_id_0> you <extra_id_1> </s>",
    )
    assert read(Question(None, "who <extra_id_0> I", "<extra_id_0> am")) == (
        "who <extra_id_0> I </s>",
        "<pad> <extra_id_0> am </s>",
    )
    (asked,) = encoder.rows([Question(None, "who am I", "you")], with_answer=False)
    assert asked.ids.tolist() == [[0]]
    assert encoder.decode(torch.tensor(encoder.tokenizer("<extra_id_0> you <extra_id_1>").input_ids)) == "you"


def test_without_a_token_to_begin_with_it_is_said_what_is_missing(source: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    edit_json(tmp_path / "config.json", lambda config: config.pop("decoder_start_token_id"))
    with pytest.raises(MopeqError, match="no decoder_start_token_id"):
        Encoder(tmp_path)


def test_what_cannot_be_done_with_an_encoder_is_said_before_anything_is(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MopeqError, match="signround tunes decoders alone"):
        check_memory(model, Recipe(group_size=32, quantizer="signround"))
    assert plan(model, Recipe(group_size=32)).fidelity is None
    monkeypatch.setattr(workplace, "free_memory", lambda: 1_200_000_000)
    with pytest.raises(MopeqError, match="an encoder is not measured block by block"):
        checked_needs(model, Recipe(group_size=32), read_questions(None), tmp_path, to_hub=False, stream=None)


def test_it_is_published_with_words_that_fit_and_its_space_answers(source: Path, tmp_path: Path) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({"question": q.text, "answer": q.answer}) + "\n" for q in ASKED), "utf-8")
    target = tmp_path / "published"
    made = publish(str(source), str(target), Recipe(group_size=32), questions=asked, compare=False)
    assert made.fidelity is not None
    assert made.fidelity["method"] == "whole"
    assert made.fidelity["inputs"]["tokens"] == 6
    assert 0 < made.fidelity["kl"]["mean"] < 1
    assert [finding.trouble for finding in check(str(target), load=False)] == [None] * 7
    manifest = read_manifest(target)
    assert manifest["model"]["projections"] == {"up": "expert_{}.wi", "down": "expert_{}.wo"}

    card = (target / "README.md").read_text("utf-8")
    assert "pipeline_tag: text2text-generation" in card
    for words in (
        "transformers' own class of this model cannot load experts that are quantized",
        'AutoModelForSeq2SeqLM.from_pretrained("path/to/this/folder", device_map="auto", trust_remote_code=True)',
        "summed over its up and down projections",
        "other linear layers of the encoder and the decoder have",
        "Embeddings, norms, routers and the output head are as in the source",
    ):
        assert words in card
    space = tmp_path / "published-space"
    said = json.loads((space / "publication.json").read_text("utf-8"))
    command = [sys.executable, str(space / "worker.py"), str(target), "--code", str(target)]
    command += ["--auto-class", said["auto_class"]]
    question = {"question": "how many ?", "length": 4, "temperature": 0, "seed": 0}
    pictures = (None, str(tiny.SHAPES / "images" / "eval-002.png"))
    lines = [json.dumps({**question, "picture": picture}) for picture in pictures]
    heard = subprocess.run(
        command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    events = [json.loads(line) for line in heard.splitlines()]
    assert [each["event"] for each in events if each["event"] != "text"] == ["ready", "done", "failed"]
    assert "this model takes text alone" in events[-1]["reason"]


def test_what_is_stored_in_float32_is_to_be_loaded_in_bfloat16(source: Path, tmp_path: Path) -> None:
    # As auto-round's loader would make it float16, which reaches no further than 65,504.
    folder = tmp_path / "source"
    shutil.copytree(source, folder)
    path = folder / "model.safetensors"
    save_file({name: value.float() for name, value in load_file(path).items()}, path, metadata={"format": "pt"})
    edit_json(folder / "config.json", lambda config: config.update(dtype="float32", torch_dtype="float32"))
    made = quantize(str(folder), tmp_path / "quantized", Recipe(group_size=32)).folder
    config = json.loads((made / "config.json").read_text("utf-8"))
    assert config["dtype"] == "bfloat16"
    assert "torch_dtype" not in config
    assert config["auto_map"].keys() == {"AutoModelForSeq2SeqLM"}
