"""Families of which transformers' classes do not tell all: a norm of another name, or a weight that they look at."""

from mopeq_hub.families.base import Family

# Their indexers compute in the dtype of this weight, which a packed layer does not have.
_INDEXED = ("self_attn.indexer.weights_proj",)

STATED = (
    Family("afmoe", norm="pre_mlp_layernorm"),
    # Attention and experts side by side, behind one norm.
    Family("cohere2_moe", norm="input_layernorm"),
    Family("deepseek_v32", whole=_INDEXED),
    # Norms come after experts.
    Family("flex_olmo", norm=""),
    Family("gemma4_text", norm="pre_feedforward_layernorm_2"),
    Family("glm_moe_dsa", whole=_INDEXED),
    Family("jamba", norm="pre_ff_layernorm"),
    Family("lfm2_moe", norm="ffn_norm"),
    Family("nemotron_h", norm="norm"),
)
