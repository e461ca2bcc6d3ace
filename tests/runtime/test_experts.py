"""A layer's packed experts do what the experts module does whose place they take, however many tokens come."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3MoeConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssExperts
from transformers.models.llama4.modeling_llama4 import Llama4TextConfig, Llama4TextExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHConfig, NemotronHExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from mopeq_hub import MopeqError
from mopeq_hub.families import family_of
from mopeq_hub.runtime.experts import PackedExperts
from mopeq_hub.runtime.matrices import few
from tests.runtime.packed import distance, random_matrix

COUNT, HIDDEN, WIDTH = 6, 64, 96
KINDS: dict[str, Any] = {
    "qwen3_moe": lambda: Qwen3MoeExperts(
        Qwen3MoeConfig(hidden_size=HIDDEN, moe_intermediate_size=WIDTH, num_experts=COUNT)
    ),
    "gpt_oss": lambda: GptOssExperts(
        GptOssConfig(hidden_size=HIDDEN, intermediate_size=WIDTH, num_local_experts=COUNT)
    ),
    "nemotron_h": lambda: NemotronHExperts(
        NemotronHConfig(hidden_size=HIDDEN, moe_intermediate_size=WIDTH, n_routed_experts=COUNT)
    ),
    "llama4_text": lambda: Llama4TextExperts(
        Llama4TextConfig(hidden_size=HIDDEN, intermediate_size=WIDTH, num_local_experts=COUNT)
    ),
}


def pair(kind: str) -> tuple[PackedExperts, nn.Module]:
    """Packed experts of all widths, and transformers' module with the weights that they stand for, float32."""
    with torch.device("meta"):
        shell = KINDS[kind]()
    reference = KINDS[kind]().float()
    form = family_of(kind, kind).form(shell)
    assert form is not None
    packed = PackedExperts(shell, form, offset=1)
    names = list(form.projections.values())
    for index in range(COUNT):
        weights, biases = [], []
        for number, name in enumerate(names):
            rows, columns = (HIDDEN, WIDTH) if number == len(names) - 1 else (WIDTH, HIDDEN)
            seed = index * 3 + number
            matrix, weight = random_matrix(rows, columns, (2, 3, 4, 8)[seed % 4], bias=form.biased, seed=seed)
            module = name.format(index)
            packed.packed |= {f"{module}.{part}": getattr(matrix, part) for part in ("qweight", "qzeros", "scales")}
            if matrix.bias is not None:
                # As they are published.
                packed.packed[f"{module}.bias"] = matrix.bias.half()
                biases.append(matrix.bias.half().float())
            weights.append(weight)
        with torch.no_grad():
            for part, stacked, bias in zip(
                form.fused, (torch.cat(weights[:-1]), weights[-1]), (biases[:-1], biases[-1:]), strict=True
            ):
                getattr(reference, part.name)[index] = stacked.T if form.transposed else stacked
                if form.biased:
                    getattr(reference, f"{part.name}_bias")[index] = torch.cat(bias)
    return packed, reference


@pytest.mark.parametrize("tokens", [1, 3, 40, 400])
@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss", "nemotron_h"])
def test_few_tokens_and_many(kind: str, tokens: int) -> None:
    packed, reference = pair(kind)
    states = torch.randn(tokens, HIDDEN)
    chosen = torch.stack([torch.randperm(COUNT)[:3] for _ in range(tokens)])
    weights = torch.rand(tokens, 3)
    with torch.no_grad():
        expected = reference(states, chosen, weights)
    assert distance(packed(states, chosen, weights), expected) < 1e-5
    assert distance(packed(states, top_k_weights=weights, top_k_index=chosen), expected) < 1e-5
    assert distance(packed(states.bfloat16(), chosen, weights.bfloat16()), expected) < 0.03
    assert packed(states.bfloat16(), chosen, weights).dtype == torch.bfloat16


@pytest.mark.parametrize(("kind", "plain"), [("qwen3_moe", True), ("gpt_oss", False), ("nemotron_h", False)])
def test_what_lies_between_the_matrices_is_found_by_trying(kind: str, plain: bool) -> None:
    packed, _ = pair(kind)
    packed.ready()
    assert (packed._in_one_region is not None) is plain


class Limited(nn.SiLU):
    def forward(self, gate: torch.Tensor) -> torch.Tensor:
        return super().forward(gate.clamp(max=7.0))


def test_a_limit_of_the_gate_is_not_overlooked() -> None:
    packed, reference = pair("qwen3_moe")
    states, chosen, weights = 100 * torch.randn(1, HIDDEN), torch.tensor([[3, 1]]), torch.rand(1, 2)
    for module in (packed.shell, reference):
        setattr(module, "act_fn", Limited())  # noqa: B010
    with torch.no_grad():
        expected = reference(states, chosen, weights)
    assert distance(packed(states, chosen, weights), expected) < 1e-5


def test_experts_with_few_tokens_and_with_many_in_one_batch() -> None:
    packed, reference = pair("qwen3_moe")
    many = 2 * few(torch.float32)
    chosen = torch.zeros(many, 2, dtype=torch.long)
    chosen[:, 1] = 1 + torch.arange(many) % 5
    states, weights = torch.randn(many, HIDDEN), torch.rand(many, 2)
    with torch.no_grad():
        expected = reference(states, chosen, weights)
    assert distance(packed(states, chosen, weights), expected) < 1e-5


def test_experts_with_few_tokens_are_taken_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, reference = pair("qwen3_moe")
    states, weights = torch.randn(40, HIDDEN), torch.rand(40, 3)
    chosen = torch.stack([torch.randperm(COUNT - 1)[:3] for _ in range(40)])
    with torch.no_grad():
        expected = reference(states, chosen, weights)
    monkeypatch.setattr("mopeq_hub.runtime.experts._AT_ONCE", 30)
    assert distance(packed(states, chosen, weights), expected) < 1e-5


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("nobody", [COUNT, -1])
def test_a_number_that_no_expert_has_adds_nothing(tokens: int, nobody: int) -> None:
    packed, _ = pair("qwen3_moe")
    states, weights = torch.randn(tokens, HIDDEN), torch.rand(tokens, 2)
    chosen = torch.tensor([[2, nobody]]).expand(tokens, 2)
    assert packed(states, chosen, weights).allclose(packed(states, chosen[:, :1], weights[:, :1]), atol=1e-6)
    assert not packed(states, torch.full_like(chosen, nobody), weights).any()


def test_llama_4_gives_each_expert_all_tokens() -> None:
    packed, reference = pair("llama4_text")
    states = torch.randn(COUNT, 7, HIDDEN)
    states[torch.rand(COUNT, 7) < 0.7] = 0
    with torch.no_grad():
        expected = reference(states.view(-1, HIDDEN))
    assert distance(packed(states.view(-1, HIDDEN)), expected) < 1e-5


def test_what_is_missing_is_named() -> None:
    packed, _ = pair("qwen3_moe")
    packed.packed["3.up_proj.qweight"] = packed.packed["3.up_proj.qweight"][1:]
    with pytest.raises(MopeqError, match=r"the packed tensors of 3\.up_proj are not those"):
        packed(torch.randn(1, HIDDEN), torch.tensor([[0]]), torch.ones(1, 1))
