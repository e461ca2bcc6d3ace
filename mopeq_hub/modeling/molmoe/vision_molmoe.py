"""MolmoE's way from crops of pictures to what is added to embeddings: a CLIP vision transformer on flat patches,
pooling by attention, a projector. Modules keep the names of the original checkpoint."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.models.olmoe.modeling_olmoe import eager_attention_forward

from .configuration_molmoe import MolmoeConfig, MolmoeVisionConfig


class MolmoeVisionAttention(nn.Module):
    """Attention of [rows, queries, width] to [rows, keys, width], or to itself; every query sees every key."""

    def __init__(self, config: MolmoeVisionConfig, width: int) -> None:
        super().__init__()
        self.config, self.head_dim, self.is_causal = config, config.head_dim, False
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.wq = nn.Linear(width, config.num_attention_heads * config.head_dim)
        self.wk = nn.Linear(width, config.num_key_value_heads * config.head_dim)
        self.wv = nn.Linear(width, config.num_key_value_heads * config.head_dim)
        self.wo = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size)
        self.residual_dropout = nn.Dropout(config.residual_dropout)

    def forward(self, queries: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        keys = queries if keys is None else keys
        heads = [self._heads(part) for part in (self.wq(queries), self.wk(keys), self.wv(keys))]
        dtype, implementation = heads[0].dtype, self.config._attn_implementation
        if self.config.float32_attention and "flash" not in str(implementation):
            heads = [part.float() for part in heads]
        attend: Callable[..., Any] = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        seen, _ = attend(
            self,
            *heads,
            None,
            is_causal=False,
            scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0,
        )
        return self.residual_dropout(self.wo(seen.to(dtype).flatten(2)))

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        """[rows, length, heads * head_dim] as [rows, heads, length, head_dim]."""
        return states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MolmoeVisionMLP(nn.Module):
    def __init__(self, config: MolmoeVisionConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.w2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.w2(self.act(self.w1(states)))


class MolmoeVisionBlock(GradientCheckpointingLayer):
    def __init__(self, config: MolmoeVisionConfig) -> None:
        super().__init__()
        self.attention = MolmoeVisionAttention(config, config.hidden_size)
        self.feed_forward = MolmoeVisionMLP(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.ffn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = states + self.attention(self.attention_norm(states))
        return states + self.feed_forward(self.ffn_norm(states))


class MolmoeVisionBlocks(nn.Module):
    def __init__(self, config: MolmoeVisionConfig) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList([MolmoeVisionBlock(config) for _ in range(config.num_hidden_layers)])


class MolmoePreTrainedModel(PreTrainedModel):
    """What MolmoE's models have in common."""

    config: MolmoeConfig
    base_model_prefix = "model"
    input_modalities: Any = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = {"OlmoeDecoderLayer", "MolmoeVisionBlock"}
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers tells all parts of a model how to compute experts, looks for a decorator in the file of each,
        # and remembers what it found for the classes derived from it.
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MolmoeVisionModel):
            scale = self.config.get_text_config().hidden_size ** -0.5
            init.normal_(module.class_embedding, mean=0.0, std=scale)
            init.normal_(module.positional_embedding, mean=0.0, std=scale)
        elif isinstance(module, MolmoeVisionBackbone) and module.pad_embed is not None:
            init.zeros_(module.pad_embed)


class MolmoeVisionModel(MolmoePreTrainedModel):
    """The vision transformer, up to the last of the layers whose outputs are asked for."""

    config: MolmoeVisionConfig  # type: ignore[assignment]
    base_model_prefix = "image_vit"
    main_input_name = "patches"
    input_modalities: Any = ("image",)

    def __init__(self, config: MolmoeVisionConfig) -> None:
        super().__init__(config)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.positional_embedding = nn.Parameter(torch.empty(config.num_positions, config.hidden_size))
        self.patch_embedding = nn.Linear(config.patch_size**2 * 3, config.hidden_size, bias=False)
        self.pre_ln = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.transformer = MolmoeVisionBlocks(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embedding

    def forward(self, patches: torch.Tensor, layers: tuple[int, ...] = (-1,)) -> list[torch.Tensor]:
        """The outputs [crops, 1 + patches, hidden] of the layers numbered so, of [crops, patches, pixels]; the class
        token comes first."""
        blocks = self.transformer.resblocks
        wanted = [layer % len(blocks) for layer in layers]
        states = self.patch_embedding(patches)
        first = self.class_embedding.to(states.dtype).expand(states.shape[0], 1, -1)
        states = self.pre_ln(torch.cat([first, states], dim=1) + self._positions().to(states.dtype))
        outputs: dict[int, torch.Tensor] = {}
        for number, block in enumerate(blocks[: max(wanted) + 1]):
            states = block(states)
            outputs[number] = states
        return [outputs[number] for number in wanted]

    def _positions(self) -> torch.Tensor:
        """Positional embeddings [1 + patches, hidden] of the config's grid of patches."""
        table, grid = self.positional_embedding, self.config.grid
        side = math.isqrt(table.shape[0] - 1)
        if grid == (side, side):
            return table
        square = table[1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
        fitted = F.interpolate(square, size=grid, mode="bicubic", align_corners=False, antialias=True)
        return torch.cat([table[:1], fitted.permute(0, 2, 3, 1).flatten(0, 2).to(table.dtype)])


class MolmoeProjector(nn.Module):
    """A SwiGLU layer from pooled features to the text model's width."""

    def __init__(self, size: int, inner: int, hidden_size: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(size, inner, bias=False)
        self.w2 = nn.Linear(inner, hidden_size, bias=False)
        self.w3 = nn.Linear(size, inner, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.w2(F.silu(self.w1(features)) * self.w3(features))


class MolmoeVisionBackbone(nn.Module):
    """Crops to what is added to embeddings: vision transformer, pooling and projector."""

    def __init__(self, config: MolmoeConfig) -> None:
        super().__init__()
        self.config = config
        vision = config.vision_config
        self.image_vit = MolmoeVisionModel(vision)
        self.image_pooling_2d = MolmoeVisionAttention(vision, config.feature_size)
        self.image_projector = MolmoeProjector(vision.hidden_size, config.projector_size, config.d_model)
        self.image_feature_dropout = nn.Dropout(config.image_feature_dropout)
        shapes = {None: None, "pad_and_partial_pad": (2, config.feature_size)}
        shape = shapes.get(config.image_padding_embed, (config.feature_size,))
        self.pad_embed = nn.Parameter(torch.empty(shape)) if shape else None

    def forward(self, images: torch.Tensor, image_masks: torch.Tensor | None = None) -> torch.Tensor:
        """Features [batch, crops, pooled patches, d_model] of `images` [batch, crops, patches, pixels].

        image_masks: [batch, crops, patches], how much of each patch is picture and not padding, 0 to 1, -1 where there
        is no crop; None where there is no padding.
        """
        batch, crops = images.shape[:2]
        patches = images.flatten(0, 1)
        # A crop that holds the number of padding is none: the original counts its features as zero.
        there = (patches != -1).all(dim=(1, 2), keepdim=True)
        layers = self.image_vit(patches.to(self.image_vit.patch_embedding.weight.dtype), tuple(self.config.vit_layers))
        features = torch.cat(layers, dim=-1)[:, 1:] * there
        features = features.unflatten(0, (batch, crops))
        if image_masks is not None:
            features = self._marked(features, image_masks)
        pooled = self._pooled(self.image_feature_dropout(features))
        return self.image_projector(pooled)

    def _marked(self, features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The features with what is learned about padding added to patches that are padding."""
        kind, table = self.config.image_padding_embed, self.pad_embed
        if table is None:
            return features
        masks = masks.unsqueeze(-1)
        none = (masks == 0).float()
        if kind == "pad_embed":
            marked = features + table * none
        elif kind == "regress":
            marked = features + table * masks.clamp(min=0)
        else:
            partly = ((masks < 1) & (masks != 0)).float()
            marked = features + table[0] * none
            marked = marked + table[1] * partly
        return marked.to(features.dtype)

    def _pooled(self, features: torch.Tensor) -> torch.Tensor:
        """Of [batch, crops, patches, feature size], [batch, crops, pooled patches, vision's hidden size], by rows.

        Patches that are missing at the right and at the bottom count as zero.
        """
        (rows, columns), (height, width) = self._grid()
        batch, crops = features.shape[:2]
        features = features.reshape(batch * crops, rows, columns, -1)
        features = F.pad(features, (0, 0, 0, -columns % width, 0, -rows % height))
        down, across = features.shape[1] // height, features.shape[2] // width
        features = features.reshape(batch * crops, down, height, across, width, -1)
        features = features.transpose(2, 3).reshape(batch * crops * down * across, height * width, -1)
        pooled = self.image_pooling_2d(features.mean(1, keepdim=True), features)
        return pooled.reshape(batch, crops, down * across, -1)

    def _grid(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return self.config.vision_config.grid, (self.config.image_pooling_h, self.config.image_pooling_w)


__all__ = ["MolmoePreTrainedModel", "MolmoeVisionBackbone", "MolmoeVisionModel"]
