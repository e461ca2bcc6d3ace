"""MolmoE: a mixture-of-experts language model (OLMoE) that sees pictures in overlapping crops.

Deitke et al., Molmo and PixMo (arXiv 2409.17146). The text model is transformers' own OLMoE with a second embedding
table. Pictures go through a CLIP vision transformer; of the patches' features from two of its layers, each 2 x 2 are
pooled by attention of which the query is their mean, projected, and added to the embeddings of the places that
`image_input_idx` names. The original checkpoint's names and fused tensors are converted by transformers when a
checkpoint is loaded or saved.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, Split, WeightConverter, WeightRenaming
from transformers.generation import GenerationMixin
from transformers.modeling_outputs import MoeCausalLMOutputWithPast, MoeModelOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.olmoe.modeling_olmoe import OlmoeModel, load_balancing_loss_func
from transformers.utils import can_return_tuple

from .configuration_molmoe import MolmoeConfig
from .vision_molmoe import MolmoePreTrainedModel, MolmoeVisionBackbone, MolmoeVisionModel


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
        table = MolmoeEmbedding(config.vocab_size, new_rows, config.hidden_size)
        self.embed_tokens = table  # type: ignore[assignment]
        self.post_init()

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MolmoeEmbedding):
            init.normal_(module.embedding, mean=0.0, std=self.config.initializer_range)
            init.normal_(module.new_embedding, mean=0.0, std=self.new_range)


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
        self.language_model.embed_tokens = value  # type: ignore[assignment]

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
            counted = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
            position_ids = counted[:, -inputs_embeds.shape[1] :]  # type: ignore[assignment]
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
        loss: Any = None
        aux_loss: Any = None
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
        """As for every model; what belongs to pictures goes into the first step of a cached generation, as they do."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[misc]
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
        WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", operations=[MergeModulelist(dim=0)]),
    ],
    overwrite=True,
)

__all__ = ["MolmoeForConditionalGeneration", "MolmoeModel", "MolmoePreTrainedModel", "MolmoeVisionModel"]
