"""A model like Kimi-VL: its experts are a list of modules, and its classes are in its repo alone."""

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3MLP,
    DeepseekV3RMSNorm,
    DeepseekV3RotaryEmbedding,
)

from .configuration_kimi_like import KimiLikeConfig
from .experts_kimi_like import Mixture, Router
from .tower_kimi_like import Tower


class Projector(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.size = config.vision_config.hidden_size * config.vision_config.merge_size**2
        self.pre_norm = nn.LayerNorm(config.vision_config.hidden_size)
        self.linear_1 = nn.Linear(self.size, self.size)
        self.linear_2 = nn.Linear(self.size, config.text_config.hidden_size)

    def forward(self, features):
        shape = (*features.shape[:-1], -1, self.pre_norm.normalized_shape[0])
        normed = self.pre_norm(features.view(shape)).flatten(-2)
        return self.linear_2(nn.functional.gelu(self.linear_1(normed)))


class Layer(nn.Module):
    def __init__(self, config, number):
        super().__init__()
        self.self_attn = DeepseekV3Attention(config, number)
        self.mlp = Mixture(config) if number >= config.first_k_dense_replace else DeepseekV3MLP(config)
        self.input_layernorm = DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden, attention_mask, position_embeddings, past_key_values):
        attended, _ = self.self_attn(
            self.input_layernorm(hidden),
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
        )
        hidden = hidden + attended
        # As older code does, in a tuple.
        return (hidden + self.mlp(self.post_attention_layernorm(hidden)),)


class Base(PreTrainedModel):
    config_class = KimiLikeConfig
    _supports_sdpa = True

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, Router):
            nn.init.normal_(module.weight, std=0.2)
            nn.init.normal_(module.e_score_correction_bias, std=0.1)


class TextModel(Base):
    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config, number) for number in range(config.num_hidden_layers)])
        self.norm = DeepseekV3RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = DeepseekV3RotaryEmbedding(config)
        self.post_init()

    def forward(
        self, input_ids=None, attention_mask=None, past_key_values=None, inputs_embeds=None, use_cache=None, **_
    ):
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        seen = past_key_values.get_seq_length() if past_key_values is not None else 0
        positions = torch.arange(seen, seen + hidden.shape[1], device=hidden.device)[None]
        mask = create_causal_mask(self.config, hidden, attention_mask, past_key_values, position_ids=positions)
        rotary = self.rotary_emb(hidden, positions)
        for layer in self.layers:
            hidden = layer(hidden, mask, rotary, past_key_values)[0]
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)


class LanguageModel(Base, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = TextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, **given):
        found = self.model(input_ids=input_ids, **given)
        logits = self.lm_head(found.last_hidden_state)
        return CausalLMOutputWithPast(logits=logits, past_key_values=found.past_key_values)


class KimiLikeForConditionalGeneration(Base, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.vision_tower = Tower(config.vision_config)
        self.multi_modal_projector = Projector(config)
        self.language_model = LanguageModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.model.embed_tokens

    def get_output_embeddings(self):
        return self.language_model.lm_head

    def forward(
        self,
        input_ids=None,
        pixel_values=None,
        attention_mask=None,
        past_key_values=None,
        inputs_embeds=None,
        use_cache=None,
        **_,
    ):
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            features = self.multi_modal_projector(self.vision_tower(pixel_values.to(self.vision_tower.dtype)))
            places = (input_ids == self.config.media_placeholder_token_id)[..., None].expand_as(inputs_embeds)
            inputs_embeds = inputs_embeds.masked_scatter(places, features.to(inputs_embeds.dtype))
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            use_cache=use_cache,
        )

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, pixel_values=None, **kwargs):
        given = super().prepare_inputs_for_generation(input_ids, past_key_values=past_key_values, **kwargs)
        seen = past_key_values is not None and past_key_values.get_seq_length() > 0
        return {**given, "pixel_values": None if seen else pixel_values}
