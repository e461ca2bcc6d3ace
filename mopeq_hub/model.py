"""A model opened for work: its source, its tensors, and who is who among them; made once, at the head of every
command."""

from dataclasses import dataclass
from typing import Any

from mopeq_hub.checkpoint import Checkpoint
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

    def experts_per_token(self) -> int:
        """How many experts the router chooses, read through the config class, which knows the names of all times."""
        from optimum.utils import NormalizedTextConfig
        from transformers import AutoConfig

        family = self.layout.family
        config = AutoConfig.from_pretrained(self.source.path("config.json").parent).get_text_config()
        normalized = NormalizedTextConfig.with_args(allow_new=True, experts_per_token=family.experts_per_token)(config)
        return int(normalized.experts_per_token)


def open_model(name: str) -> Model:
    """The model that `name` (a folder, or owner/name[@revision]) refers to, from config and headers alone.

    Raises UsageError on a name that cannot be one, MopeqError on whatever is wrong with the source.
    """
    source = open_source(name)
    config = read_json(source, "config.json")
    family = identify(config, source.name)
    checkpoint = Checkpoint(source)
    return Model(source, config, checkpoint, read_layout(checkpoint, family, source.path("config.json"), source.name))
