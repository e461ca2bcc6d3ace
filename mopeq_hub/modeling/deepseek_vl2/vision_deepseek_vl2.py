"""What DeepSeek-VL2 sees with: SigLIP's layers, and the projector to the text model.

This file needs nothing but transformers, so that it can lie in a model's repo and be loaded from there.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.siglip.modeling_siglip import SiglipVisionModel, eager_attention_forward

from .configuration_deepseek_vl2 import DeepseekVLV2ProjectorConfig, DeepseekVLV2VisionConfig


class DeepseekVLV2VisionEmbeddings(nn.Module):
    """Patches of a picture [tiles, 3, image_size, image_size] as vectors [tiles, patches, width]."""

    def __init__(self, config: DeepseekVLV2VisionConfig) -> None:
        super().__init__()
        self.image_size = config.image_size
        self.patch_embedding = nn.Conv2d(config.num_channels, config.width, config.patch_size, config.patch_size)
        patches = (config.image_size // config.patch_size) ** 2
        self.position_embedding = nn.Parameter(torch.zeros(1, patches, config.width))

    def forward(self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = False) -> torch.Tensor:
        if interpolate_pos_encoding or pixel_values.shape[-2:] != (self.image_size, self.image_size):
            height, width = pixel_values.shape[-2:]
            raise ValueError(f"tiles are {width} x {height} pixels where the model takes {self.image_size} squared")
        patches = self.patch_embedding(pixel_values.to(self.patch_embedding.weight.dtype))
        return patches.flatten(2).transpose(1, 2) + self.position_embedding


class DeepseekVLV2VisionAttention(nn.Module):
    """SigLIP's attention with queries, keys and values in one matrix, as the checkpoints hold them."""

    def __init__(self, config: DeepseekVLV2VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.width // config.heads
        self.is_causal = False
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = hidden_states.shape[:-1]
        queries, keys, values = (
            part.view(*shape, -1, self.head_dim).transpose(1, 2) for part in self.qkv(hidden_states).chunk(3, dim=-1)
        )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        mixed, weights = attend(
            self,
            queries,
            keys,
            values,
            attention_mask,
            is_causal=False,
            scaling=self.head_dim**-0.5,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        return self.proj(mixed.reshape(*shape, -1).contiguous()), weights


class DeepseekVLV2VisionModel(SiglipVisionModel):
    """SigLIP as DeepSeek-VL2 has it: every patch of the last layer after its norm, no pooling."""

    config: DeepseekVLV2VisionConfig
    _can_record_outputs = {
        **SiglipVisionModel._can_record_outputs,
        "attentions": DeepseekVLV2VisionAttention,
    }
    _no_split_modules = ["DeepseekVLV2VisionEmbeddings", "SiglipEncoderLayer"]

    def __init__(self, config: DeepseekVLV2VisionConfig) -> None:
        super().__init__(config)
        self.embeddings = DeepseekVLV2VisionEmbeddings(config)
        for layer in self.encoder.layers:
            layer.self_attn = DeepseekVLV2VisionAttention(config)
        self.post_init()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeepseekVLV2VisionEmbeddings):
            init.normal_(module.position_embedding, std=self.config.width**-0.5)


class DeepseekVLV2Projector(nn.Module):
    """Patches [tiles, side * side, input_dim] to what the text model reads, [tiles, tokens, n_embed].

    Where the type downsamples, `downsample_ratio` squared patches are one token; a side that is no multiple is padded.
    """

    def __init__(self, config: DeepseekVLV2ProjectorConfig) -> None:
        super().__init__()
        self.ratio = config.downsample_ratio if config.projector_type == "downsample_mlp_gelu" else 1
        self.layers: nn.Module = nn.Identity()
        if config.projector_type == "linear":
            self.layers = nn.Linear(config.input_dim, config.n_embed)
        elif config.projector_type != "identity":
            downsampling = config.projector_type == "downsample_mlp_gelu"
            wide = int(config.n_embed * config.mlp_ratio) if downsampling else config.n_embed
            sizes = [config.input_dim * self.ratio**2, *[wide] * (config.depth - 1), config.n_embed]
            layers: list[nn.Module] = []
            for before, after in pairwise(sizes):
                layers += [nn.GELU(), nn.Linear(before, after)]
            self.layers = nn.Sequential(*layers[1:])

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        if self.ratio > 1:
            tiles, count, width = patches.shape
            side = int(count**0.5)
            missing = -side % self.ratio
            grid = nn.functional.pad(patches.view(tiles, side, side, width), (0, 0, 0, missing, 0, missing))
            patches = nn.functional.unfold(grid.permute(0, 3, 1, 2), self.ratio, stride=self.ratio).transpose(1, 2)
        return self.layers(patches)
