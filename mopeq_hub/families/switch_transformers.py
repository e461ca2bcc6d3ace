"""Switch Transformers: an encoder and a decoder of text, one expert a token, and experts that are modules of two linear
layers each, in every n-th layer. What is published is loaded by a class of ours (`modeling/switch_transformers`)."""

from mopeq_hub.families.base import Family

SWITCH_TRANSFORMERS = Family(
    "switch_transformers",
    experts_per_token=1,
    norm="layer_norm",
    normalized=False,
    fused=(),
    modules=(("up", "expert_{}.wi"), ("down", "expert_{}.wo")),
)
