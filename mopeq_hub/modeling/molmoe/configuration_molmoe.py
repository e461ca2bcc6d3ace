"""MolmoE's config, read from the flat config.json of its Hub repo.

`text_config` and `vision_config` are made from the flat values and not written: a saved config.json has the form of the
original repo's. The names of the flat values are those of the original config (allenai/MolmoE-1B-0924).
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.models.olmoe.configuration_olmoe import OlmoeConfig

_ONLY: dict[str, tuple[Any, ...]] = {
    "block_type": ("moe",),
    "activation_type": ("swiglu",),
    "layer_norm_type": ("rms",),
    "layer_norm_with_affine": (True,),
    "attention_layer_norm": (True,),
    "attention_layer_norm_with_affine": (True,),
    "norm_after": (False,),
    "bias_for_layer_norm": (False, None),
    "include_bias": (False,),
    "qkv_bias": (False,),
    "clip_qkv": (None,),
    "rope": (True,),
    "rope_impl": ("llama",),
    "alibi": (False,),
    "weight_tying": (False,),
    "scale_logits": (False,),
    "normalize_input_embeds": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "moe_shared_expert": (False, None),
    "moe_interleave": (False, None),
    "unconditioned": (False,),
    "use_cls_feature": (False,),
    "image_pooling_2d": ("attention-meanq",),
    "image_projector": ("mlp",),
    "image_padding_embed": ("pad_and_partial_pad", "pad_embed", "regress", None),
}
"""What is built of the choices that the original config knows; a config.json with another value is refused."""

_ORIGINAL_CODE = "config_molmoe.MolmoConfig"
"""What the original repo's auto_map names, which does not run in transformers 5; not to be written again."""

_VISION_NAMES = {
    "image_emb_dim": "hidden_size",
    "image_mlp_dim": "intermediate_size",
    "image_num_layers": "num_hidden_layers",
    "image_num_heads": "num_attention_heads",
    "image_num_key_value_heads": "num_key_value_heads",
    "image_head_dim": "head_dim",
    "image_patch_size": "patch_size",
    "image_default_input_size": "image_size",
    "image_num_pos": "num_positions",
    "image_norm_eps": "layer_norm_eps",
    "attention_dropout": "attention_dropout",
    "residual_dropout": "residual_dropout",
    "initializer_range": "initializer_range",
}
_ACTIVATIONS = {"gelu_tanh": "gelu_pytorch_tanh"}
"""transformers' names of activations that the original calls otherwise."""


@strict
class MolmoeVisionConfig(PreTrainedConfig):
    """The CLIP vision transformer that sees crops as flat patches; the defaults are CLIP ViT-L/14 at 336 pixels.

    image_size: height and width of a crop in pixels. num_positions: rows of the table of positional embeddings, a
    square of patches and one for the class token; interpolated where a crop has another grid.
    float32_attention: attention is computed in float32, whatever the weights are in.
    """

    model_type = "molmo_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_hidden_layers: int = 23
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 64
    patch_size: int = 14
    image_size: list[int] | tuple[int, ...] = (336, 336)
    num_positions: int = 577
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float | int = 1e-5
    attention_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    float32_attention: bool = True
    initializer_range: float = 0.02

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches in a crop."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size


@strict
class MolmoeConfig(PreTrainedConfig):
    """The config of MolmoE, by the names of its Hub repo's config.json; the defaults are those of MolmoE-1B-0924.

    embedding_size: rows of the first embedding table and of the head. additional_vocab_size: rows of the second table,
    whose ids follow; it has no rows in the head. mlp_hidden_size (or mlp_ratio times d_model): twice the width of an
    expert, and of the projector between vision and text. vit_layers: which layers' outputs are the features of a patch,
    side by side. image_pooling_h, image_pooling_w: patches that become one feature.

    Raises ValueError, in one line, on a dense Molmo, which has the same model type, and on choices that are not built.
    """

    model_type = "molmo"
    keys_to_ignore_at_inference = ("past_key_values",)
    sub_configs_defaults = {
        "text_config": SubConfigSpec(OlmoeConfig),
        "vision_config": SubConfigSpec(MolmoeVisionConfig),
    }

    d_model: int = 2048
    n_layers: int = 16
    n_heads: int = 16
    n_kv_heads: int | None = None
    multi_query_attention: bool | None = None
    head_dim: int | None = None
    mlp_ratio: int | float = 1
    mlp_hidden_size: int | None = None
    moe_num_experts: int = 64
    moe_top_k: int = 8
    vocab_size: int = 50280
    embedding_size: int | None = 50304
    additional_vocab_size: int | None = 128
    max_sequence_length: int = 4096
    max_position_embeddings: int | None = 32768
    rope_theta: float | int = 10000.0
    layer_norm_eps: float | int | None = 1e-5
    attention_dropout: float | int = 0.0
    initializer_range: float = 0.02
    new_embedding_init_range: float = 0.02
    pad_token_id: int | None = 1
    use_cache: bool = True
    tie_word_embeddings: bool = False
    float32_attention: bool = True

    vision_backbone: dict[str, Any] | None = None
    vit_layers: list[int] | tuple[int, ...] = (-2, -9)
    image_pooling_h: int = 2
    image_pooling_w: int = 2
    image_padding_embed: str | None = "pad_and_partial_pad"
    image_feature_dropout: float | int = 0.0

    text_config: Any = None
    vision_config: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("block_type", "moe")
        if str((kwargs.get("auto_map") or {}).get("AutoConfig", "")).endswith(_ORIGINAL_CODE):
            del kwargs["auto_map"]
        for name, known in _ONLY.items():
            value = kwargs.get(name, getattr(self, name, known[0]))
            if value not in known:
                raise ValueError(f"a MolmoE with {name} {value!r} is not supported, only with {known[0]!r}")
        if not isinstance(self.text_config, PreTrainedConfig):
            self.text_config = OlmoeConfig(**{**self._text_values(), **(self.text_config or {})})
        if not isinstance(self.vision_config, PreTrainedConfig):
            self.vision_config = MolmoeVisionConfig(**{**self._vision_values(), **(self.vision_config or {})})
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The config of a config.json. Raises ValueError where that is a dense Molmo's."""
        if config_dict.get("block_type") != "moe":
            raise ValueError(
                "this Molmo is dense (its config.json has no block_type 'moe'); only MolmoE is supported, "
                "whose blocks are mixtures of experts"
            )
        return super().from_dict(config_dict, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The flat form, without the two configs that are made from it."""
        output: dict[str, Any] = super().to_dict()
        for derived in self.sub_configs:
            output.pop(derived, None)
        return output

    @property
    def feature_size(self) -> int:
        """Length of a patch's features: the chosen layers' outputs side by side."""
        return int(self.vision_config.hidden_size) * len(self.vit_layers)

    @property
    def projector_size(self) -> int:
        """Width of an expert, and of the projector's inner layer."""
        return (self.mlp_hidden_size or int(self.mlp_ratio * self.d_model)) // 2

    def _text_values(self) -> dict[str, Any]:
        rows = self.embedding_size or self.vocab_size
        pad = self.pad_token_id
        values = {
            "vocab_size": rows,
            "hidden_size": self.d_model,
            "intermediate_size": self.projector_size,
            "num_hidden_layers": self.n_layers,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads or (1 if self.multi_query_attention else self.n_heads),
            "num_experts": self.moe_num_experts,
            "num_experts_per_tok": self.moe_top_k,
            "norm_topk_prob": False,
            "rms_norm_eps": self.layer_norm_eps or 1e-5,
            "max_position_embeddings": self.max_position_embeddings or self.max_sequence_length,
            "rope_parameters": {"rope_type": "default", "rope_theta": float(self.rope_theta)},
            "attention_dropout": self.attention_dropout,
            "initializer_range": self.initializer_range,
            "pad_token_id": pad if pad is not None and 0 <= pad < rows else None,
            "eos_token_id": None,
            "use_cache": self.use_cache,
            "tie_word_embeddings": False,
        }
        return values | ({"head_dim": self.head_dim} if self.head_dim else {})

    def _vision_values(self) -> dict[str, Any]:
        original = self.vision_backbone or {}
        if original.get("image_model_type", "openai") != "openai":
            raise ValueError(f"a MolmoE with the vision model {original['image_model_type']!r} is not supported")
        values = {name: original[theirs] for theirs, name in _VISION_NAMES.items() if theirs in original}
        if "image_mlp_activations" in original:
            activation = original["image_mlp_activations"]
            values["hidden_act"] = _ACTIVATIONS.get(activation, activation)
        return values | {"float32_attention": self.float32_attention}


__all__ = ["MolmoeConfig", "MolmoeVisionConfig"]
