"""DeepSeek-VL2 (arXiv:2412.10302), composed of transformers' own parts.

This file needs nothing but transformers, so that it can lie in a model's repo and be loaded from there.
"""

from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import PreTrainedModel, slice_logits_to_keep
from transformers.utils import can_return_tuple

from .configuration_deepseek_vl2 import DeepseekVLV2Config
from .text_deepseek_vl2 import DeepseekVLV2TextModel
from .vision_deepseek_vl2 import DeepseekVLV2Projector, DeepseekVLV2VisionModel


class DeepseekVLV2PreTrainedModel(PreTrainedModel):
    config: DeepseekVLV2Config
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = [
        "DeepseekVLV2DecoderLayer",
        "DeepseekVLV2VisionEmbeddings",
        "SiglipEncoderLayer",
    ]
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["e_score_correction_bias"]
    # SigLIP's pooling head, which checkpoints hold and no picture passes through.
    _keys_to_ignore_on_load_unexpected = [r"attn_pool\."]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = False

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        # transformers tells all parts of a model how to compute experts, looks for a decorator in the file of each,
        # and remembers what it found for the classes derived from it.
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DeepseekVLV2Model):
            for parameter in (module.image_newline, module.view_seperator):
                init.normal_(parameter, std=parameter.shape[0] ** -0.5)


class DeepseekVLV2Model(DeepseekVLV2PreTrainedModel):
    """Vision tower, projector and text model. `view_seperator` is spelled as in the checkpoints."""

    def __init__(self, config: DeepseekVLV2Config) -> None:
        super().__init__(config)
        self.vision_tower = DeepseekVLV2VisionModel._from_config(config.vision_config)
        self.projector = DeepseekVLV2Projector(config.projector_config)
        self.language_model = DeepseekVLV2TextModel._from_config(config.language_config)
        self.image_newline = nn.Parameter(torch.zeros(config.projector_config.n_embed))
        self.view_seperator = nn.Parameter(torch.zeros(config.projector_config.n_embed))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def get_image_features(
        self, pixel_values: torch.Tensor, images_spatial_crop: torch.Tensor, **kwargs: Any
    ) -> list[torch.Tensor]:
        """What the text model reads of the pictures, for each row of the batch: [its image positions, hidden].

        pixel_values: [batch, tiles, 3, side, side], of each picture its global view and then its tiles row by row; what
        follows the last is padding. images_spatial_crop: [batch, pictures, 2], tiles across and down; a picture of 0
        ends a row.
        """
        crops = [_pictures(row) for row in images_spatial_crop.tolist()]
        counts = [sum(1 + across * down for across, down in row) for row in crops]
        if max(counts) > pixel_values.shape[1]:
            raise ValueError(
                f"images_spatial_crop counts {max(counts)} tiles, pixel_values has {pixel_values.shape[1]}"
            )
        seen = torch.cat([row[:count] for row, count in zip(pixel_values, counts, strict=True)])
        features = self.projector(self.vision_tower(seen).last_hidden_state) if len(seen) else seen
        rows, start = [], 0
        for row in crops:
            parts = [features.new_zeros(0, self.image_newline.shape[0])]
            for across, down in row:
                parts += self._arranged(features[start : start + 1 + across * down], across, down)
                start += 1 + across * down
            rows.append(torch.cat(parts))
        return rows

    def _arranged(self, tiles: torch.Tensor, across: int, down: int) -> list[torch.Tensor]:
        """One picture's global view and tiles [1 + tiles, tokens, hidden], with a newline after each row of tokens and
        the separator between the two, each part [tokens, hidden]."""
        side = int(tiles.shape[1] ** 0.5)
        grid = tiles[1:].view(down, across, side, side, -1).transpose(1, 2)
        whole = self._with_newlines(tiles[0].view(side, side, -1))
        local = self._with_newlines(grid.reshape(down * side, across * side, -1))
        parts = [whole, self.view_seperator[None].to(tiles.dtype), local]
        return parts if self.config.global_view_pos == "head" else parts[::-1]

    def _with_newlines(self, grid: torch.Tensor) -> torch.Tensor:
        newline = self.image_newline.to(grid.dtype).expand(grid.shape[0], 1, -1)
        return torch.cat([grid, newline], dim=1).flatten(0, 1)

    def _embedded(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        images_seq_mask: torch.Tensor | None,
        images_spatial_crop: torch.Tensor | None,
    ) -> torch.Tensor:
        """Embeddings of ids [batch, tokens], with what is seen where `images_seq_mask` says so."""
        embedded = self.get_input_embeddings()(input_ids)
        if pixel_values is None or images_spatial_crop is None or not images_spatial_crop.any():
            return embedded
        if images_seq_mask is None:
            raise ValueError("images_seq_mask is missing: which of the tokens are of pictures")
        rows = self.get_image_features(pixel_values, images_spatial_crop)
        # Generation without a cache appends tokens; none of them is of a picture.
        mask = nn.functional.pad(images_seq_mask.bool(), (0, input_ids.shape[1] - images_seq_mask.shape[1]))
        seen, placed = [len(row) for row in rows], mask.sum(dim=1).tolist()
        if seen != placed:
            raise ValueError(f"rows have {placed} image positions where their pictures need {seen}")
        features = torch.cat(rows).to(embedded.device, embedded.dtype)
        return embedded.masked_scatter(mask.unsqueeze(-1).to(embedded.device), features)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        images_seq_mask: torch.Tensor | None = None,
        images_spatial_crop: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> MoeModelOutputWithPast:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        if input_ids is not None:
            inputs_embeds = self._embedded(input_ids, pixel_values, images_seq_mask, images_spatial_crop)
        elif pixel_values is not None:
            raise ValueError("pictures are placed by input_ids: give those, not inputs_embeds")
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )


def _pictures(crops: list[list[int]]) -> list[tuple[int, int]]:
    """A row's pictures, tiles across and down, up to the first of none."""
    pictures: list[tuple[int, int]] = []
    for across, down in crops:
        if not across or not down:
            break
        pictures.append((across, down))
    return pictures


class DeepseekVLV2ForConditionalGeneration(DeepseekVLV2PreTrainedModel, GenerationMixin):
    """DeepSeek-VL2 with its head: answers about pictures."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}

    def __init__(self, config: DeepseekVLV2Config) -> None:
        super().__init__(config)
        self.model = DeepseekVLV2Model(config)
        text = config.language_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def adjust_generation_fn(self, *args: Any, **kwargs: Any) -> None:
        """As transformers': where a repo has no generation_config.json, it reads config.json's first level alone, but
        the token that ends an answer is in `language_config`."""
        super().adjust_generation_fn(*args, **kwargs)  # type: ignore[misc]
        if self.generation_config.eos_token_id is None:
            self.generation_config.eos_token_id = self.config.language_config.eos_token_id

    def get_image_features(
        self, pixel_values: torch.Tensor, images_spatial_crop: torch.Tensor, **kwargs: Any
    ) -> list[torch.Tensor]:
        return self.model.get_image_features(pixel_values, images_spatial_crop, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        images_seq_mask: torch.Tensor | None = None,
        images_spatial_crop: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> MoeCausalLMOutputWithPast:
        """Logits [batch, tokens, vocabulary], of the last `logits_to_keep` tokens if that is not 0.

        pixel_values: [batch, tiles, 3, side, side]. images_seq_mask: [batch, tokens], true for pictures' tokens.
        images_spatial_crop: [batch, pictures, 2], tiles across and down, 0 for padding. labels: as input_ids, -100
        where none. Raises ValueError where these do not fit together.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            images_seq_mask=images_seq_mask,
            images_spatial_crop=images_spatial_crop,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.language_config.vocab_size, **kwargs)
        return MoeCausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )


register_checkpoint_conversion_mapping(
    "DeepseekVLV2ForConditionalGeneration",
    [
        WeightRenaming(r"^language\.lm_head\.", "^lm_head."),
        WeightRenaming(r"^language\.model\.", "^model.language_model."),
        WeightRenaming(r"^projector\.", "^model.projector."),
        WeightRenaming(r"^image_newline", "^model.image_newline"),
        WeightRenaming(r"^view_seperator", "^model.view_seperator"),
        WeightRenaming(r"^vision\.", "^model.vision_tower."),
        WeightRenaming("vision_tower.patch_embed.proj.", "vision_tower.embeddings.patch_embedding."),
        WeightRenaming("vision_tower.pos_embed", "vision_tower.embeddings.position_embedding"),
        WeightRenaming("vision_tower.norm.", "vision_tower.post_layernorm."),
        WeightRenaming("vision_tower.blocks.", "vision_tower.encoder.layers."),
        # Without groups: auto-round reads these too, and knows none.
        WeightRenaming(r"\.attn\.qkv\.", ".self_attn.qkv."),
        WeightRenaming(r"\.attn\.proj\.", ".self_attn.proj."),
        WeightRenaming(r"\.norm1\.", ".layer_norm1."),
        WeightRenaming(r"\.norm2\.", ".layer_norm2."),
        WeightConverter(
            ["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"],
            "mlp.experts.gate_up_proj",
            operations=[MergeModulelist(dim=0), Concatenate(dim=1)],
        ),
        WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", operations=[MergeModulelist(dim=0)]),
    ],
    overwrite=True,
)

__all__ = [
    "DeepseekVLV2ForConditionalGeneration",
    "DeepseekVLV2Model",
    "DeepseekVLV2PreTrainedModel",
]
