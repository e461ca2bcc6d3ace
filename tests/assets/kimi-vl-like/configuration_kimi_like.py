"""The configuration of a model like Kimi-VL: a text model like DeepSeek-V3, and a small tower that sees."""

from transformers import DeepseekV3Config, PretrainedConfig


class TowerConfig(PretrainedConfig):
    model_type = "kimi_like_tower"

    def __init__(
        self,
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=1,
        image_size=48,
        patch_size=8,
        merge_size=2,
        **kwargs,
    ):
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_attention_heads = num_attention_heads
        self.num_hidden_layers = num_hidden_layers
        self.image_size = image_size
        self.patch_size = patch_size
        self.merge_size = merge_size
        super().__init__(**kwargs)


class KimiLikeConfig(PretrainedConfig):
    model_type = "kimi_vl"
    sub_configs = {"text_config": DeepseekV3Config, "vision_config": TowerConfig}  # noqa: RUF012

    def __init__(self, text_config=None, vision_config=None, media_placeholder_token_id=4, **kwargs):
        self.text_config = DeepseekV3Config(**text_config) if isinstance(text_config, dict) else text_config
        self.vision_config = TowerConfig(**vision_config) if isinstance(vision_config, dict) else vision_config
        self.text_config = self.text_config or DeepseekV3Config()
        self.vision_config = self.vision_config or TowerConfig()
        self.media_placeholder_token_id = media_placeholder_token_id
        super().__init__(**kwargs)
