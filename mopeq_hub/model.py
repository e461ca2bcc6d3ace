"""A model opened for work: its source, its tensors, and who is who among them; made once, at the head of every
command."""

import platform
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Thread
from typing import Any

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Alike, Layout, alike
from mopeq_hub.families import SEEING, identify, text_model_type
from mopeq_hub.placing import read_layout
from mopeq_hub.remote_code import RemoteCode, code_of
from mopeq_hub.source import Source, companions, open_source, read_json
from mopeq_hub.startup import begun

_BLOCK = [128, 128]


@dataclass(frozen=True)
class Model:
    """`config` is config.json as it lies in the source. code: that comes with the model and makes it, which somebody
    trusted; None where transformers has its kind."""

    source: Source
    config: dict[str, Any]
    checkpoint: Checkpoint
    layout: Layout
    code: RemoteCode | None = None

    @property
    def weights(self) -> "Weights":
        return Weights(self.source, self.checkpoint)

    @property
    def trusted(self) -> bool:
        """Whether processes that load the model run code that comes with it."""
        return self.code is not None

    @property
    def takes_pictures(self) -> bool:
        return self.layout.task in SEEING

    @property
    def has_encoder(self) -> bool:
        """Whether an encoder reads what is asked, and a decoder writes the answer."""
        return self.layout.task == "text2text-generation"

    @property
    def kind(self) -> str:
        """What config.json says of it: its model type, and that of its text model where it is another's."""
        whole, text = str(self.config["model_type"]), text_model_type(self.config)
        return whole if text in ("", whole) else f"{whole} over {text}"

    @cached_property
    def alike(self) -> tuple[Alike, ...]:
        """The matrices of the layout, those together that take the same bytes at the same width."""
        return alike(self.checkpoint, self.layout.matrices)

    @cached_property
    def active_weights(self) -> int:
        """Weights that one token is multiplied with."""
        layout, tensors = self.layout, self.checkpoint.tensors
        inside = layout.routed_size
        apart = [kept for name, kept in layout.kept.items() if name not in layout.answering]
        beside = {source for kept in apart for source in kept.sources}
        outside = self.checkpoint.size - inside - sum(tensors[source].size for source in beside)
        experts = len(layout.experts) // len(layout.modules_of)
        return outside + inside * layout.experts_per_token // experts

    @cached_property
    def largest_part(self) -> int:
        """Weights of the largest decoder layer, its matrices twice, or of all that is outside the layers, if that is
        more."""
        layout, tensors = self.layout, self.checkpoint.tensors
        outside, layers = 0, [0] * layout.layer_count
        for each in self.alike:
            for layer, count in Counter(expert.layer for expert, _ in each.places).items():
                layers[layer] += 2 * count * each.size
        twice = {matrix.source for matrix in layout.rest}
        kept = {source for each in layout.answering.values() for source in each.sources}
        for name in twice | kept:
            size = 2 * tensors[name].size if name in twice else tensors[name].size
            if name in layout.layer_of:
                layers[layout.layer_of[name]] += size
            elif name in kept:
                outside += size
        return max(outside, *layers)

    @property
    def undivided(self) -> str:
        """Why it cannot be measured block by block, in words that follow "a model"; empty where it can."""
        return "with an encoder" if self.has_encoder else self.layout.family.undivided

    @property
    def parts(self) -> str:
        """In words, which part of a model of several is quantized; empty where there is but one."""
        beside = " and ".join(self.layout.beside)
        return f"its {self.layout.speaker} is quantized; {beside} stay as they are" if beside else ""

    @cached_property
    def absent(self) -> str | None:
        """The first tensor of routed experts whose place in its file is empty; None where all are there, or on the Hub.

        Other tensors may be nothing but zeros, which some file systems do not write.
        """
        if self.source.kind != "folder":
            return None
        sources = dict.fromkeys(matrix.source for matrix in self.layout.routed)
        return next((source for source in sources if self.checkpoint.is_hole(source)), None)

    def local_folder(self) -> Path:
        """The folder on this machine that holds all that loading the model takes, which is fetched if it is not here.

        Raises MopeqError where it cannot be had.
        """
        for name in [*self.checkpoint.shards, *companions(self.source), *(self.code.files if self.code else ())]:
            self.source.path(name)
        return self.source.path("config.json").parent


def _float8_block(config: dict[str, Any], where: str) -> tuple[int, int]:
    """Rows and columns that share a factor in a model stored as float8. MXFP4's tensors tell all by themselves.

    Raises MopeqError where the model is quantized in any other way.
    """
    quantization = config.get("quantization_config") or {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else "some method"
    block = quantization.get("weight_block_size", _BLOCK) if method in (None, "fp8", "mxfp4") else None
    if not isinstance(block, list) or len(block) != 2 or any(type(n) is not int or n < 16 or n % 16 for n in block):
        raise MopeqError(f"{where} is quantized already, by {method}", "name the model it was made from")
    return block[0], block[1]


def open_config(name: str, trust_remote_code: bool = False) -> tuple[Source, dict[str, Any], RemoteCode | None]:
    """The source that `name` refers to, its config.json, and the code that comes with it where transformers lacks its
    kind.

    Raises UsageError on a name that cannot be one, MopeqError where there is no such code, or it is not trusted.
    """
    source = open_source(name)
    config = read_json(source, "config.json")
    return source, config, code_of(source, config, trust_remote_code)


def open_model(name: str, *, named: bool = True, trust_remote_code: bool = False) -> Model:
    """The model that `name` (a folder, or owner/name[@revision]) refers to, from config and headers alone.

    named: whether its commit will be asked for. trust_remote_code: whether code that comes with it may be run, here and
    in the processes that load it, where transformers does not have its kind.
    Raises UsageError on a name that cannot be one, MopeqError on whatever is wrong with the source.
    """
    source, config, code = open_config(name, trust_remote_code)
    block = _float8_block(config, source.name)
    family = identify(config, source.name, foreign=code is not None)
    checkpoint = Checkpoint(source, block)
    if named and not (source.kind == "folder" and checkpoint.is_hole(checkpoint.largest.name)):
        # Reading a whole folder takes about as long as importing transformers does.
        Thread(target=_find_commit, args=(source,), daemon=True).start()
    layout = read_layout(checkpoint, family, source.path("config.json"), source.name, code)
    begun()
    return Model(source, config, checkpoint, layout, code)


def _find_commit(source: Source) -> None:
    with suppress(OSError):
        # Whoever asks for it later is told.
        _ = source.commit


@dataclass(frozen=True)
class Weights:
    """A model's files and tensors, without who is who among them: all that work on a shard needs.

    Pickled it is where they are; another process opens them again, once, with neither torch nor transformers.
    """

    source: Source
    checkpoint: Checkpoint

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened_again, (self.source.location, self.checkpoint.block)


@lru_cache(maxsize=1)
def _opened_again(location: str, block: tuple[int, int]) -> Weights:
    if Path(location).is_absolute() and not Path(location).is_dir():
        raise MopeqError(
            f"{location} is not on {platform.node()}",
            "let all machines of the cluster have that folder in common, or name a model on the Hub",
        )
    source = open_source(location)
    return Weights(source, Checkpoint(source, block))
