"""Families of which a line tells all: another name of the norm before the experts, or what cannot be done with them."""

from mopeq_hub.families.base import Family

REFUSED = (
    Family("dbrx", refused="its experts are rows of three matrices, which auto-round's loader does not take apart"),
    Family("diffusion_gemma", refused="it fills a canvas of tokens at once, so that there is no next token to measure"),
    Family("jetmoe", refused="its experts sort tokens themselves, and auto-round's loader does not take them apart"),
    Family("longcat_flash", refused="transformers asks for weights of experts that have none, and cannot load it"),
)
STATED = (
    Family("afmoe", norm="pre_mlp_layernorm"),
    # Attention and experts side by side, behind one norm.
    Family("cohere2_moe", norm="input_layernorm"),
    # Norms come after experts.
    Family("flex_olmo", norm=""),
    Family("gemma4_text", norm="pre_feedforward_layernorm_2"),
    # Every few layers their sum is kept, and all that come later attend to those sums.
    Family("inkling2_text", undivided="whose layers look at what earlier ones gave"),
    Family("jamba", norm="pre_ff_layernorm"),
    Family("lfm2_moe", norm="ffn_norm"),
    Family("nemotron_h", norm="norm"),
    *REFUSED,
)
