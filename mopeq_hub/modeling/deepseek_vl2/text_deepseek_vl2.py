"""DeepSeek-VL2's text model: DeepSeek-V3's latent attention or Llama's attention over DeepSeekMoE layers.

This file needs nothing but transformers, so that it can lie in a model's repo and be loaded from there.
"""

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import PreTrainedModel
from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
    DeepseekV3Attention,
    DeepseekV3DecoderLayer,
    DeepseekV3Experts,
    DeepseekV3MLP,
    DeepseekV3Model,
    DeepseekV3RMSNorm,
    DeepseekV3RotaryEmbedding,
)
from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.utils.output_capturing import OutputRecorder

from .configuration_deepseek_vl2 import DeepseekVLV2TextConfig


class DeepseekVLV2Router(nn.Module):
    """Which experts a token goes to and with which weights, by any method that the original code knows."""

    def __init__(self, config: DeepseekVLV2TextConfig) -> None:
        super().__init__()
        self.config = config
        self.top_k = config.num_experts_per_tok or 1
        self.weight = nn.Parameter(torch.zeros(config.n_routed_experts, config.hidden_size))
        if config.topk_method == "noaux_tc":
            self.e_score_correction_bias = nn.Buffer(torch.zeros(config.n_routed_experts))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of tokens [tokens, hidden]: logits [tokens, experts], weights and numbers of those chosen [tokens, k]."""
        config = self.config
        logits = nn.functional.linear(hidden_states.view(-1, config.hidden_size).float(), self.weight.float())
        scores = logits.sigmoid() if config.scoring_func == "sigmoid" else logits.softmax(dim=-1)
        choice = scores
        if config.topk_method == "noaux_tc":
            choice = self._within_groups(scores + self.e_score_correction_bias, 2, float("-inf"))
        elif config.topk_method == "group_limited_greedy":
            choice = self._within_groups(scores, 1, 0.0)
        chosen = choice.topk(self.top_k, dim=-1, sorted=False).indices
        weights = scores.gather(1, chosen)
        if config.norm_topk_prob and self.top_k > 1:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return logits, weights * config.routed_scaling_factor, chosen

    def _within_groups(self, scores: torch.Tensor, best: int, outside: float) -> torch.Tensor:
        """Scores with `outside` for experts of all but the `topk_group` groups whose `best` experts score most."""
        groups = self.config.n_group or 1
        if groups == 1:
            return scores
        grouped = scores.view(len(scores), groups, -1)
        kept = grouped.topk(best, dim=-1).values.sum(-1).topk(self.config.topk_group or groups, dim=-1).indices
        mask = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter(1, kept, False)
        return grouped.masked_fill(mask.unsqueeze(-1), outside).view_as(scores)


class DeepseekVLV2MoE(nn.Module):
    """Routed experts, and shared ones that every token goes to."""

    def __init__(self, config: DeepseekVLV2TextConfig) -> None:
        super().__init__()
        self.experts = DeepseekV3Experts(config)
        self.gate = DeepseekVLV2Router(config)
        self.shared_experts = None
        if config.n_shared_experts:
            self.shared_experts = DeepseekV3MLP(config, config.moe_intermediate_size * config.n_shared_experts)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        _, weights, chosen = self.gate(hidden_states)
        routed = self.experts(hidden_states.view(-1, hidden_states.shape[-1]), chosen, weights).view_as(hidden_states)
        return routed if self.shared_experts is None else routed + self.shared_experts(hidden_states)


class DeepseekVLV2RotaryEmbedding(DeepseekV3RotaryEmbedding):
    """Rotary embedding with frequencies rounded to `rope_dtype`.

    The original is run after `model.to(torch.bfloat16)`, which rounds its buffer of frequencies too; its logits come of
    those, in whatever dtype it computes afterwards.
    """

    def __init__(self, config: DeepseekVLV2TextConfig) -> None:
        super().__init__(config=config)
        self.round_()

    def round_(self) -> None:
        dtype = getattr(torch, self.config.rope_dtype)
        for frequencies in (self.inv_freq, self.original_inv_freq):
            init.copy_(frequencies, frequencies.to(dtype).to(frequencies.dtype))


class DeepseekVLV2DecoderLayer(DeepseekV3DecoderLayer):
    """DeepSeek-V3's layer with the attention and the feed-forward part that this model's config asks for."""

    def __init__(self, config: DeepseekVLV2TextConfig, layer_idx: int) -> None:
        GradientCheckpointingLayer.__init__(self)
        self.hidden_size = config.hidden_size
        attention = DeepseekV3Attention if config.use_mla else LlamaAttention
        self.self_attn = attention(config=config, layer_idx=layer_idx)
        self.mlp = DeepseekVLV2MoE(config) if config.is_sparse(layer_idx) else DeepseekV3MLP(config)
        self.input_layernorm = DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class DeepseekVLV2TextModel(DeepseekV3Model):
    """The text model; its forward is DeepSeek-V3's."""

    config: DeepseekVLV2TextConfig
    _no_split_modules = ["DeepseekVLV2DecoderLayer"]
    _keys_to_ignore_on_load_unexpected = None
    _can_record_outputs = {
        "hidden_states": DeepseekVLV2DecoderLayer,
        "attentions": [DeepseekV3Attention, LlamaAttention],
        "router_logits": OutputRecorder(DeepseekVLV2Router, index=0),
    }

    def __init__(self, config: DeepseekVLV2TextConfig) -> None:
        PreTrainedModel.__init__(self, config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.layers = nn.ModuleList(
            [DeepseekVLV2DecoderLayer(config, number) for number in range(config.num_hidden_layers)]
        )
        self.norm = DeepseekV3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = DeepseekVLV2RotaryEmbedding(config)
        self.gradient_checkpointing = False
        self.post_init()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeepseekVLV2RotaryEmbedding):
            module.round_()
        elif isinstance(module, DeepseekVLV2Router):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if hasattr(module, "e_score_correction_bias"):
                init.zeros_(module.e_score_correction_bias)
