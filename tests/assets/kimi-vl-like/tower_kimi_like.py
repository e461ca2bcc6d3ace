"""What sees: patches, one layer of attention or more, and two by two of them made one token of the text model."""

from torch import nn
from transformers import PreTrainedModel

from .configuration_kimi_like import TowerConfig


class Layer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        self.norm0 = nn.LayerNorm(config.hidden_size)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.wqkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.wo = nn.Linear(config.hidden_size, config.hidden_size)
        self.fc0 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc1 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states):
        parts = self.wqkv(self.norm0(states)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        states = states + self.wo(attended)
        return states + self.fc1(nn.functional.gelu(self.fc0(self.norm1(states))))


class Tower(PreTrainedModel):
    config_class = TowerConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.side = config.image_size // config.patch_size
        self.merge = config.merge_size
        self.patches = nn.Conv2d(3, config.hidden_size, config.patch_size, config.patch_size)
        self.places = nn.Embedding(self.side**2, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    def forward(self, pixel_values):
        """[pictures, 3, side, side] -> [pictures, merged patches, hidden size of all that are merged]."""
        states = self.patches(pixel_values).flatten(2).transpose(1, 2) + self.places.weight
        for layer in self.layers:
            states = layer(states)
        rows = self.side // self.merge
        states = states.view(len(states), rows, self.merge, rows, self.merge, -1).transpose(2, 3)
        return states.reshape(len(states), rows * rows, -1)
