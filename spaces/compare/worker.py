"""One model, answering questions read from standard input; run by model_process.py, one process for each model.

auto-round's loader changes transformers for its whole process, so original and quantized model must not share one.
A question is a JSON line, {"picture": path or null, "question": text, "length": tokens, "temperature": 0 for the
likeliest words, "seed": number}; its answer is lines of JSON: "text" as it is made, then "done" with its figures, or
"failed" with the reason in words.
"""

import argparse
import inspect
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, TextIO

import torch
import transformers
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    BatchFeature,
    PreTrainedTokenizerBase,
    TextStreamer,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import cached_file

Say = Callable[..., None]
GAP = "<extra_id_0>"
"""The token of a gap in a text, where a tokenizer has it: T5's kin were trained to fill these in."""


class PartsProcessor:
    """Image processor and tokenizer put together, for families whose own processor needs torchvision for videos.

    Knows the one rule these families share: a picture takes as many placeholders as its grid has merged patches.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, image_token: str) -> None:
        self.image_processor = image_processor
        self.tokenizer = tokenizer
        self.image_token = image_token
        self.chat_template = tokenizer.chat_template

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> BatchFeature:
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        pictures = [part["image"] for part in messages[0]["content"] if part["type"] == "image"]
        return self(text, pictures or None, options["return_tensors"], add_special_tokens=False)

    def __call__(
        self, text: str, images: list[Image.Image] | None, return_tensors: str, add_special_tokens: bool = True
    ) -> BatchFeature:
        pixels = self.image_processor(images=images, return_tensors=return_tensors) if images else {}
        if images:
            text = text.replace(self.image_token, self.image_token * self._placeholders(pixels), 1)
        words = self.tokenizer(text, return_tensors=return_tensors, add_special_tokens=add_special_tokens)
        inputs = {**words, **pixels}
        placeholder = self.tokenizer.convert_tokens_to_ids(self.image_token)
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == placeholder).int()
        return BatchFeature(inputs)

    def _placeholders(self, pixels: Any) -> int:
        if "image_grid_thw" not in pixels:
            raise ValueError("this model's pictures cannot be prepared without torchvision")
        return int(pixels["image_grid_thw"].prod()) // self.image_processor.merge_size**2


class Voice(TextStreamer):
    """Says the text while it is made, and keeps the times that the figures need."""

    def __init__(self, tokenizer: Any, say: Say) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._say = say
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self.times.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._say(event="text", text=text)


class Answerer:
    """The loaded model with what turns a question into its inputs."""

    def __init__(self, where: str, load: Callable[..., Any], pictures: bool, **options: Any) -> None:
        """load: called as `from_pretrained`. options: of that; where the code that makes the model is the repo's own,
        that it is trusted."""
        self.model = load(where, dtype="auto", **options).eval()
        # Of a model of several parts, the one that answers in text; only the whole knows where an answer ends.
        speaker = getattr(self.model, "thinker", self.model)
        if pictures:
            self.processor = load_processor(where, speaker.config, **options)
        else:
            self.processor = AutoTokenizer.from_pretrained(where, **options)
        self.accepted = inspect.signature(speaker.forward).parameters
        self.speaks = speaker is not self.model

    @torch.inference_mode()
    def answer(self, say: Say, picture: str | None, question: str, length: int, temperature: float, seed: int) -> None:
        started = time.perf_counter()
        voice = Voice(getattr(self.processor, "tokenizer", self.processor), say)
        inputs = self.prepare(picture, question)
        how: dict[str, Any] = {"do_sample": False}
        if temperature:
            how = {"do_sample": True, "temperature": temperature}
            torch.manual_seed(seed)
        self.model.generate(**inputs, **self.at_most(length), streamer=voice, **how)
        first, last, after_first = voice.times[0], voice.times[-1], len(voice.times) - 1
        rate = after_first / (last - first) if after_first else None
        gpu_bytes = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        say(event="done", first_token_seconds=first - started, tokens_per_second=rate, gpu_bytes=gpu_bytes)

    def at_most(self, length: int) -> dict[str, Any]:
        """The options for an answer in text of so many tokens."""
        return {"return_audio": False, "thinker_max_new_tokens": length} if self.speaks else {"max_new_tokens": length}

    def prepare(self, picture: str | None, question: str) -> dict[str, Any]:
        if isinstance(self.processor, PreTrainedTokenizerBase):
            if picture:
                raise ValueError("this model takes text alone; ask it without a picture")
            return dict(self.words(question).to(self.model.device))
        image = Image.open(picture).convert("RGB") if picture else None
        if self.processor.chat_template:
            parts = [{"type": "image", "image": image}] if image else []
            messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
            inputs = self.processor.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )
        else:
            text = f"{self.processor.image_token}\n{question}" if image else question
            inputs = self.processor(text=text, images=[image] if image else None, return_tensors="pt")
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        return {name: value for name, value in inputs.items() if name != "mm_token_type_ids" or name in self.accepted}

    def words(self, question: str) -> Any:
        """The inputs of a question to a model of text alone."""
        if self.processor.chat_template:
            asked = [{"role": "user", "content": question}]
            text = self.processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            return self.processor(text, return_tensors="pt", add_special_tokens=False)
        if GAP in self.processor.get_vocab() and GAP not in question:
            question = f"{question} {GAP}"
        return self.processor(question, return_tensors="pt")


def loader(auto_class: str, published: bool) -> Callable[..., Any]:
    """What loads a model: transformers or, of a publication on a CPU, mopeq_hub, which multiplies with its packed
    weights as they are. On a GPU auto-round does, which mopeq_hub helps with some models."""
    if not auto_class.startswith("AutoModel"):
        raise ValueError(f"{auto_class} is not one of transformers' AutoModel classes")
    fast = import_module("mopeq_hub").load if published else None
    plain = getattr(transformers, auto_class).from_pretrained
    return partial(plain, device_map="auto") if torch.cuda.is_available() else fast or plain


def learn(where: str, revision: str | None) -> None:
    """Have transformers' auto classes know a model by the code in a publication's repo, which the original, whose repo
    may hold none or another's, is made by too."""
    with open(cached_file(where, "config.json", revision=revision), encoding="utf-8") as file:
        said = json.load(file)
    made = {
        name: get_class_from_dynamic_module(reference, where, revision=revision)
        for name, reference in said["auto_map"].items()
    }
    if config := made.pop("AutoConfig", None):
        AutoConfig.register(said["model_type"], config)
    for name, each in made.items():
        getattr(transformers, name).register(config or CONFIG_MAPPING[said["model_type"]], each, exist_ok=True)


def load_processor(where: str, config: Any, **options: Any) -> Any:
    """The model's own processor, or its parts where building it needs torchvision, which no Space here installs."""
    try:
        return AutoProcessor.from_pretrained(where, **options)
    except (ImportError, ValueError) as error:
        placeholder = getattr(config, "image_token_id", None)
        if "torchvision" not in str(error).lower() or placeholder is None:
            raise
    tokenizer = AutoTokenizer.from_pretrained(where, **options)
    image_processor = AutoImageProcessor.from_pretrained(where, **options)
    return PartsProcessor(image_processor, tokenizer, str(tokenizer.convert_ids_to_tokens(placeholder)))


def in_words(error: Exception) -> str:
    """One line for the person who asked; the whole story goes to the log."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def protocol() -> TextIO:
    """Standard output, kept for the answers alone: whatever a library prints goes to the log."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    return answers


def main() -> int:
    answers = protocol()

    def say(**message: Any) -> None:
        answers.write(json.dumps(message) + "\n")

    def fail(error: Exception) -> None:
        print(f"worker: {error!r}", file=sys.stderr, flush=True)
        say(event="failed", reason=in_words(error))

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("where", help="owner/name on the Hub, or a folder")
    parser.add_argument("--revision")
    parser.add_argument("--auto-class", required=True)
    parser.add_argument("--pictures", action="store_true", help="the model takes pictures")
    parser.add_argument("--trusted", action="store_true", help="run the code in the model's repo that makes it")
    parser.add_argument("--code", help="owner/name on the Hub, or a folder, with the code of the model")
    parser.add_argument("--code-revision")
    parser.add_argument("--published", action="store_true", help="compute with its packed weights, by mopeq_hub")
    options = parser.parse_args()
    try:
        if options.code:
            learn(options.code, options.code_revision)
        how = {"revision": options.revision} | ({"trust_remote_code": True} if options.trusted else {})
        answerer = Answerer(options.where, loader(options.auto_class, options.published), options.pictures, **how)
    except Exception as error:
        fail(error)
        return 1
    say(event="ready")
    for line in sys.stdin:
        try:
            answerer.answer(say, **json.loads(line))
        except Exception as error:
            fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
