"""Families whose norm before the experts has another name."""

from mopeq_hub.families.base import Family

STATED = (
    Family("afmoe", norm="pre_mlp_layernorm"),
    # Attention and experts side by side, behind one norm.
    Family("cohere2_moe", norm="input_layernorm"),
    # Norms come after experts.
    Family("flex_olmo", norm=""),
    Family("gemma4_text", norm="pre_feedforward_layernorm_2"),
    Family("jamba", norm="pre_ff_layernorm"),
    Family("lfm2_moe", norm="ffn_norm"),
    Family("nemotron_h", norm="norm"),
)
