"""A model opened for work: its source, its tensors, and who is who among them; made once, at the head of every
command."""

from dataclasses import dataclass
from typing import Any

from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.errors import MopeqError
from mopeq_hub.experts import Layout, read_layout
from mopeq_hub.families import identify
from mopeq_hub.source import Source, open_source, read_json


@dataclass(frozen=True)
class Model:
    """`config` is config.json as it lies in the source."""

    source: Source
    config: dict[str, Any]
    checkpoint: Checkpoint
    layout: Layout

    @property
    def text_config(self) -> dict[str, Any]:
        return self.config.get("text_config") or self.config


def open_model(name: str) -> Model:
    """The model that `name` (a folder, or owner/name[@revision]) refers to, from config and headers alone.

    Raises UsageError on a name that cannot be one, MopeqError on whatever is wrong with the source.
    """
    source = open_source(name)
    config = read_json(source, "config.json")
    if "quantization_config" in config:
        method = dict(config["quantization_config"] or {}).get("quant_method", "some method")
        raise MopeqError(f"{source.name} is quantized already, by {method}", "name the model it was made from")
    family = identify(config, source.name)
    checkpoint = Checkpoint(source)
    return Model(source, config, checkpoint, read_layout(checkpoint, family, source.path("config.json"), source.name))
