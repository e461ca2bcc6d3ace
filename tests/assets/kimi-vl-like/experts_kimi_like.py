"""A layer's experts, each a module of its own, and their router."""

import torch
from torch import nn


class Expert(nn.Module):
    def __init__(self, hidden_size, intermediate_size):
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """Chooses by sigmoids with a bias that does not weigh."""

    def __init__(self, config):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.scale = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, config.hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.empty(config.n_routed_experts))

    def forward(self, hidden):
        logits = nn.functional.linear(hidden.float(), self.weight.float())
        scores = logits.sigmoid()
        chosen = (scores + self.e_score_correction_bias.float()).topk(self.top_k, dim=-1).indices
        weights = scores.gather(1, chosen)
        return chosen, weights / (weights.sum(-1, keepdim=True) + 1e-20) * self.scale


class Mixture(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate = Router(config)
        sizes = config.hidden_size, config.moe_intermediate_size
        self.experts = nn.ModuleList([Expert(*sizes) for _ in range(config.n_routed_experts)])
        self.shared_experts = Expert(sizes[0], sizes[1] * config.n_shared_experts)

    def forward(self, hidden):
        states = hidden.view(-1, hidden.shape[-1])
        return self._infer(states, *self.gate(states)).view_as(hidden) + self.shared_experts(hidden)

    @torch.no_grad()
    def _infer(self, states, chosen, weights):
        """Each expert on its tokens, which were put in its order; as DeepSeek's code infers."""
        counts = chosen.new_zeros((len(states), len(self.experts))).scatter_(1, chosen, 1).sum(0)
        order = chosen.view(-1).argsort()
        ordered = states[order // chosen.shape[1]]
        outputs, start = [], 0
        for index, count in enumerate(counts.cpu().numpy()):
            if count == 0:
                continue
            outputs.append(self.experts[index](ordered[start : start + count]))
            start += count
        together = torch.cat(outputs)
        found = torch.empty_like(together)
        found[order] = together
        found = found.view(*chosen.shape, -1).type(weights.dtype).mul_(weights.unsqueeze(-1))
        return found.sum(1).type(together.dtype)
