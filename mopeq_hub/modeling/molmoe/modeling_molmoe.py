"""MolmoE: a mixture-of-experts language model (OLMoE) that sees pictures in overlapping crops.

Deitke et al., Molmo and PixMo (arXiv 2409.17146). The text model is transformers' own OLMoE with a second embedding
table. Pictures go through a CLIP vision transformer; of the patches' features from two of its layers, each 2 x 2 are
pooled by attention of which the query is their mean, projected, and added to the embeddings of the places that
`image_input_idx` names. Vision modules keep the names of the original checkpoint; the text model's are converted by
transformers when a checkpoint is loaded or saved.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, Split, WeightConverter, WeightRenaming
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, slice_logits_to_keep
from transformers.models.olmoe.modeling_olmoe import OlmoeModel, eager_attention_forward, load_balancing_loss_func
from transformers.utils import can_return_tuple

from .configuration_molmoe import MolmoeConfig, MolmoeVisionConfig


class MolmoeEmbedding(nn.Module):
    """Two tables with one numbering: ids beyond the first are rows of the second. [...] of ids to [..., hidden]."""

    def __init__(self, rows: int, new_rows: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(rows, hidden_size))
        self.new_embedding = nn.Parameter(torch.empty(new_rows, hidden_size))

    @property
    def weight(self) -> torch.Tensor:
        """Both tables as one."""
        return torch.cat([self.embedding, self.new_embedding])

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        rows, new_rows = self.embedding.shape[0], self.new_embedding.shape[0]
        if new_rows == 0:
            return F.embedding(input_ids, self.embedding)
        old = F.embedding(input_ids.clamp(max=rows - 1), self.embedding)
        new = F.embedding((input_ids - rows).clamp(min=0), self.new_embedding)
        return torch.where((input_ids < rows).unsqueeze(-1), old, new)


class MolmoeTextModel(OlmoeModel):
    """transformers' OLMoE with MolmoE's embedding."""

    def __init__(self, config: Any, new_rows: int = 0, new_range: float = 0.02) -> None:
        super().__init__(config)
        self.new_range = new_range
        self.embed_tokens = MolmoeEmbedding(config.vocab_size, new_rows, config.hidden_size)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MolmoeEmbedding):
            init.normal_(module.embedding, mean=0.0, std=self.config.initializer_range)
            init.normal_(module.new_embedding, mean=0.0, std=self.new_range)


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
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ("OlmoeDecoderLayer", "MolmoeVisionBlock")
    _skip_keys_device_placement = ("past_key_values",)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MolmoeVisionModel):
            scale = self.config.get_text_config().hidden_size**-0.5
            init.normal_(module.class_embedding, mean=0.0, std=scale)
            init.normal_(module.positional_embedding, mean=0.0, std=scale)
        elif isinstance(module, MolmoeVisionBackbone) and module.pad_embed is not None:
            init.zeros_(module.pad_embed)


class MolmoeVisionModel(MolmoePreTrainedModel):
    """The vision transformer, up to the last of the layers whose outputs are asked for."""

    config: MolmoeVisionConfig
    base_model_prefix = "image_vit"
    main_input_name = "patches"
    input_modalities = ("image",)

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
        """[batch, crops, patches, feature size] pooled to [batch, crops, pooled patches, vision's hidden size], by rows;
        patches that are missing at the right and at the bottom count as zero."""
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


class MolmoeModel(MolmoePreTrainedModel):
    """MolmoE without the head."""

    def __init__(self, config: MolmoeConfig) -> None:
        super().__init__(config)
        self.language_model = MolmoeTextModel(
            config.text_config, config.additional_vocab_size or 0, config.new_embedding_init_range
        )
        self.vision_backbone = MolmoeVisionBackbone(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.embed_tokens = value

    def get_image_features(self, pixel_values: torch.Tensor, image_masks: torch.Tensor | None = None) -> torch.Tensor:
        """As `MolmoeVisionBackbone.forward`."""
        return self.vision_backbone(pixel_values, image_masks)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_masks: torch.Tensor | None = None,
        image_input_idx: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        """As `MolmoeForConditionalGeneration.forward`, up to the last hidden state."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("MolmoE takes either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            if image_input_idx is None:
                raise ValueError("pixel_values come with image_input_idx, which names the places of their features")
            features = self.get_image_features(pixel_values, image_masks)
            inputs_embeds = _added(inputs_embeds, features, image_input_idx)
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        return self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )


def _added(embeds: torch.Tensor, features: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Embeddings [batch, length, hidden] with features [batch, crops, patches, hidden] added at `places` [batch, crops,
    patches], those with a negative place nowhere."""
    batch, length, hidden = embeds.shape
    # What has no place goes to one after the last, which is cut off.
    flat = places.to(embeds.device).reshape(batch, -1, 1)
    flat = torch.where(flat < 0, length, flat).expand(-1, -1, hidden)
    added = embeds.new_zeros(batch, length + 1, hidden)
    added = added.scatter_add(1, flat, features.reshape(batch, -1, hidden).to(embeds))
    return embeds + added[:, :length]


class MolmoeForConditionalGeneration(MolmoePreTrainedModel, GenerationMixin):
    """MolmoE: pictures and text in, text out."""

    def __init__(self, config: MolmoeConfig) -> None:
        super().__init__(config)
        self.model = MolmoeModel(config)
        self.lm_head = nn.Linear(config.d_model, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_image_features(self, pixel_values: torch.Tensor, image_masks: torch.Tensor | None = None) -> torch.Tensor:
        """As `MolmoeVisionBackbone.forward`."""
        return self.model.get_image_features(pixel_values, image_masks)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        image_masks: torch.Tensor | None = None,
        image_input_idx: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        output_router_logits: bool | None = None,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits [batch, length, vocabulary].

        pixel_values: [batch, crops, patches, pixels], normalised; a crop of all -1 is padding.
        image_masks: [batch, crops, patches], how much of a patch is picture. image_input_idx: [batch, crops, pooled
        patches], the position in `input_ids` to which each feature is added, negative for nowhere.
        """
        text = self.config.text_config
        if output_router_logits is None:
            output_router_logits = text.output_router_logits
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_masks=image_masks,
            image_input_idx=image_input_idx,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            output_router_logits=output_router_logits,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = aux_loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=text.vocab_size, **kwargs)
        if output_router_logits:
            aux_loss = load_balancing_loss_func(
                outputs.router_logits, text.num_experts, text.num_experts_per_tok, attention_mask
            )
            if loss is not None:
                loss = loss + text.router_aux_loss_coef * aux_loss.to(loss.device)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            aux_loss=aux_loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As for every model; what belongs to pictures goes where they go: into the first step of a cached generation."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        if inputs.get("pixel_values") is None:
            inputs.pop("image_masks", None)
            inputs.pop("image_input_idx", None)
        return inputs


_RENAMED = {
    r"model\.transformer\.wte": "model.language_model.embed_tokens",
    r"model\.transformer\.ln_f": "model.language_model.norm",
    r"model\.transformer\.blocks": "model.language_model.layers",
    r"\.attn\.attn_norm": ".input_layernorm",
    r"\.mlp\.ff_norm": ".post_attention_layernorm",
    r"\.attn\.attn_out": ".self_attn.o_proj",
    r"\.attn\.q_norm": ".self_attn.q_norm",
    r"\.attn\.k_norm": ".self_attn.k_norm",
}
register_checkpoint_conversion_mapping(
    MolmoeConfig.model_type,
    [
        *(WeightRenaming(theirs, ours) for theirs, ours in _RENAMED.items()),
        WeightConverter(
            r"\.attn\.att_proj.weight",
            [f".self_attn.{part}_proj.weight" for part in "qkv"],
            operations=[Split(dim=0)],
        ),
        WeightConverter(
            ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
            "mlp.experts.gate_up_proj",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter(
            "mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", operations=[MergeModulelist(dim=0)]
        ),
    ],
    overwrite=True,
)

__all__ = ["MolmoeForConditionalGeneration", "MolmoeModel", "MolmoePreTrainedModel", "MolmoeVisionModel"]
