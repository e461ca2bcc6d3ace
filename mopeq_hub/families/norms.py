"""By the text model's type, the norm before router and experts where it is not called `post_attention_layernorm`."""

NORMS: dict[str, dict[str, str]] = {}
