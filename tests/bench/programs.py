"""Commands that are watched and are not `mopeq-hub`'s: `python -m tests.bench.programs NAME SOURCE TARGET ...`."""

import json
import math
import sys
from pathlib import Path
from typing import Any

NAMES = ("rtn", "model-free", "publish", "text", "scheme")


def main(name: str, source: str, target: str, *more: str) -> None:
    if name == "publish":
        _publish(source, target)
    elif name == "text":
        _text_model(source, target)
    elif name == "scheme":
        _auto_scheme(source, target, *more)
    else:
        _auto_round(source, target, name == "model-free")


def _auto_round(source: str, target: str, model_free: bool) -> None:
    """auto-round's round-to-nearest at 4 bits, groups of 64: the model loaded, or shard by shard without it."""
    from auto_round import AutoRound

    way: dict[str, Any] = {"model_free": True} if model_free else {"disable_model_free": True}
    rounding = AutoRound(
        source, scheme="W4A16", group_size=64, iters=0, disable_opt_rtn=True, device_map="cpu", low_cpu_mem_usage=True,
        **way,
    )  # fmt: skip
    rounding.quantize_and_save(target, format="auto_round")


def _publish(source: str, target: str) -> None:
    """A Hub's model to a Hub, shard by shard; asked one question without a picture."""
    from mopeq_hub import Recipe, publish

    questions = Path("questions.jsonl")
    questions.write_text('{"question": "what is it?", "answer": "a shape"}\n', "utf-8")
    publish(source, target, Recipe(), questions=questions, compare=False, space=False, stream=True)


def _text_model(source: str, target: str) -> None:
    """The language model of a LLaVA over qwen3_moe as a model of its own, in bfloat16, with tokenizer and template."""
    import torch
    from transformers import AutoTokenizer, LlavaForConditionalGeneration, Qwen3MoeForCausalLM

    whole: Any = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.bfloat16)
    text: Any = Qwen3MoeForCausalLM(whole.config.text_config)
    text.to(torch.bfloat16)
    text.model.load_state_dict(whole.model.language_model.state_dict())
    text.lm_head.load_state_dict(whole.lm_head.state_dict())
    text.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)


def _auto_scheme(source: str, target: str, questions: str, bpw: str) -> None:
    """AutoScheme's bits of each expert's linear layers by their names, as JSON, for so many bits a weight of theirs.

    Its `avg_bits` counts all linear layers that it finds, scales and zero points included, as our bpw does; attention,
    which its own option leaves out, routers and head count with the 16 bits that they keep. A question with its answer
    is a sample. It drops samples that are shorter than `seqlen` and cuts the others there: here at the shortest.
    """
    from auto_round import AutoRound, AutoScheme
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    entries = [json.loads(line) for line in Path(questions).read_text("utf-8").splitlines()]
    roles = (("user", "question"), ("assistant", "answer"))
    turns = [[{"role": role, "content": entry[part]} for role, part in roles] for entry in entries]
    texts = [tokenizer.apply_chat_template(each, tokenize=False) for each in turns]
    samples = Path(target).with_suffix(".samples.json")
    samples.write_text(json.dumps(texts), "utf-8")
    size = {"nsamples": len(texts), "seqlen": min(len(tokenizer(text).input_ids) for text in texts)}
    scheme = AutoScheme(
        avg_bits=_average_bits(Path(source), float(bpw)), options=("W2A16G64", "W3A16G64", "W4A16G64"),
        dataset=str(samples), device_map="cpu", **size,
    )  # fmt: skip
    rounding = AutoRound(
        source, scheme=scheme, dataset=str(samples), iters=0, device_map="cpu", enable_torch_compile=False,
        ignore_layers="self_attn", disable_model_free=True, **size,
    )  # fmt: skip
    # What comes before anything is quantized: the scores, and the widths that they lead to.
    rounding.post_init()
    found = {name: given["bits"] for name, given in rounding.layer_config.items() if ".experts." in name}
    if not found:
        raise SystemExit("AutoScheme gave no expert a width")
    Path(target).write_text(json.dumps(found), "utf-8")


def _average_bits(folder: Path, bpw: float) -> float:
    """The average over all linear layers where the experts' have `bpw` and the others 16."""
    from safetensors import safe_open

    counts = {True: 0, False: 0}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                shape = file.get_slice(name).get_shape()
                if len(shape) > 1 and "embed_tokens" not in name:
                    counts[".experts." in name] += math.prod(shape)
    return (bpw * counts[True] + 16 * counts[False]) / sum(counts.values())


if __name__ == "__main__":
    main(*sys.argv[1:])
