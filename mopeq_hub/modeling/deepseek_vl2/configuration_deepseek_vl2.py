"""DeepSeek-VL2's configuration (arXiv:2412.10302), in the form and under the names of its repos' config.json.

This file needs nothing but transformers, so that it can lie in a model's repo and be loaded from there.
"""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

MODEL_TYPE = "deepseek_vl_v2"


def trouble_with(config: dict[str, Any]) -> str:
    """In one line, why a config.json with this model type is none of DeepSeek-VL2; empty where it is one.

    DeepSeek-OCR and models made from it say `deepseek_vl_v2` too. What they see with is another thing.
    """
    vision, named = config.get("vision_config"), config.get("architectures") or []
    sees = vision.get("model_name") if isinstance(vision, dict) else None
    others = [name for name in named if not str(name).startswith("DeepseekVLV2")]
    if others:
        return f"model type {MODEL_TYPE}, but the architecture is {others[0]}, not DeepSeek-VL2"
    if not (named if sees is None else str(sees).startswith("siglip")):
        eyes = sees or "what it does not name"
        return f"model type {MODEL_TYPE}, but it sees with {eyes}, not with SigLIP as DeepSeek-VL2"
    return ""


class DeepseekVLV2VisionConfig(PreTrainedConfig):
    """The vision tower: a SigLIP encoder of `layers` layers of `width`, for square pictures of `image_size` pixels."""

    model_type = "deepseek_vl_v2_vision"
    base_config_key = "vision_config"
    attribute_map = {
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
    }

    model_name: str = "siglip_so400m_patch14_384"
    image_size: int = 384
    patch_size: int = 16
    num_channels: int = 3
    width: int = 1024
    layers: int = 24
    heads: int = 16
    mlp_ratio: float | int = 4.0
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6
    attention_dropout: float | int = 0.0
    vision_use_head: bool = False

    @property
    def intermediate_size(self) -> int:
        return int(self.width * self.mlp_ratio)


class DeepseekVLV2ProjectorConfig(PreTrainedConfig):
    """From patches to the text model's width: `downsample_ratio` squared patches become one token."""

    model_type = "deepseek_vl_v2_projector"
    base_config_key = "projector_config"

    projector_type: str = "downsample_mlp_gelu"
    input_dim: int = 1152
    n_embed: int = 2048
    depth: int = 2
    mlp_ratio: int | float = 1
    downsample_ratio: int = 2
    token_pooling: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.projector_type not in ("downsample_mlp_gelu", "mlp_gelu", "linear", "identity") or self.token_pooling:
            pooled = " with token pooling" if self.token_pooling else ""
            raise ValueError(f"DeepSeek-VL2's projector {self.projector_type!r}{pooled} is not known")


class DeepseekVLV2TextConfig(PreTrainedConfig):
    """The text model: multi-head attention, or with `use_mla` DeepSeek-V2's latent attention, over DeepSeekMoE layers.

    Defaults are those of the original code: a repo's config.json leaves them out. `topk_method` is `greedy`,
    `group_limited_greedy` or `noaux_tc`, `scoring_func` is `softmax` or `sigmoid`. `rope_dtype` is what rotary
    frequencies are rounded to, whatever the model computes in.
    """

    model_type = "deepseek_vl_v2_text"
    base_config_key = "language_config"
    keys_to_ignore_at_inference = ["past_key_values"]
    attribute_map = {
        "num_experts": "n_routed_experts",
        "num_local_experts": "n_routed_experts",
    }

    vocab_size: int = 102400
    hidden_size: int = 4096
    intermediate_size: int = 11008
    moe_intermediate_size: int = 1407
    num_hidden_layers: int = 30
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 32
    n_shared_experts: int | None = None
    n_routed_experts: int | None = None
    num_experts_per_tok: int | None = None
    routed_scaling_factor: float | int = 1.0
    topk_method: str = "greedy"
    scoring_func: str = "softmax"
    norm_topk_prob: bool = False
    n_group: int | None = None
    topk_group: int | None = None
    moe_layer_freq: int = 1
    first_k_dense_replace: int = 0
    use_mla: bool = True
    kv_lora_rank: int | None = 512
    q_lora_rank: int | None = 1536
    qk_rope_head_dim: int = 64
    qk_nope_head_dim: int = 128
    v_head_dim: int = 128
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-6
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = 100000
    eos_token_id: int | list[int] | None = 100001
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    rope_interleave: bool = True
    rope_dtype: str = "bfloat16"
    attention_bias: bool = False
    attention_dropout: float | int = 0.0
    mlp_bias: bool = False
    output_router_logits: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.use_mla or self.num_key_value_heads is None:
            # Latent attention has keys and values for every head, whatever the config says.
            self.num_key_value_heads = self.num_attention_heads
        # What rotary embeddings turn, which is what transformers' rope code takes `head_dim` for.
        self.head_dim = self.qk_rope_head_dim if self.use_mla else self.hidden_size // self.num_attention_heads
        self.qk_head_dim = self.qk_nope_head_dim + self.qk_rope_head_dim if self.use_mla else self.head_dim
        super().__post_init__(**kwargs)
        known = (("greedy", "group_limited_greedy", "noaux_tc"), ("softmax", "sigmoid"))
        if self.topk_method not in known[0] or self.scoring_func not in known[1]:
            raise ValueError(f"DeepSeek-VL2's router {self.scoring_func!r} {self.topk_method!r} is not known")

    def is_sparse(self, layer: int) -> bool:
        """Whether a decoder layer has experts."""
        late_enough = layer >= self.first_k_dense_replace and layer % self.moe_layer_freq == 0
        return self.n_routed_experts is not None and late_enough


class DeepseekVLV2Config(PreTrainedConfig):
    """DeepSeek-VL2. `language_config` is the text model's, as the repos call it; `text_config` names the same.

    Raises ValueError, in one line, on a model that only shares the model type.
    """

    model_type = MODEL_TYPE
    attribute_map = {"text_config": "language_config"}
    sub_configs_defaults = {
        "vision_config": DeepseekVLV2VisionConfig,
        "language_config": DeepseekVLV2TextConfig,
    }

    # Dictionaries until __post_init__ has run; Any, for transformers checks what is given against the annotation.
    vision_config: Any = None
    projector_config: Any = None
    language_config: Any = None
    tile_tag: str = "2D"
    global_view_pos: str = "head"
    candidate_resolutions: list | tuple = ((384, 384),)
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.language_config is None:
            self.language_config = kwargs.pop("text_config", None)
        # A config that is made by hand need not say what this class takes for granted.
        vision = {"model_name": "siglip", **(self.vision_config if isinstance(self.vision_config, dict) else {})}
        described = {"architectures": self.architectures, "vision_config": vision}
        if trouble := trouble_with(described):
            raise ValueError(trouble)
        if self.tile_tag != "2D" or self.global_view_pos not in ("head", "tail"):
            raise ValueError(f"DeepSeek-VL2 with {self.tile_tag} tiles, global view {self.global_view_pos}: not known")
        if not isinstance(self.projector_config, PreTrainedConfig):
            # No sub-config in transformers' sense: there is no model behind it.
            self.projector_config = DeepseekVLV2ProjectorConfig(**(self.projector_config or {}))
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.language_config.tie_word_embeddings


__all__ = [
    "DeepseekVLV2Config",
    "DeepseekVLV2ProjectorConfig",
    "DeepseekVLV2TextConfig",
    "DeepseekVLV2VisionConfig",
    "trouble_with",
]
