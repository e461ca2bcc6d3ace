"""Models of several parts, one of which reads and writes text, such as Qwen3-Omni: a thinker that answers, and a talker
that makes speech of what it thinks. The whole has no forward of its own, and its `generate` speaks."""

from inspect import signature
from typing import Any

_THE_SPEAKERS = ("forward", "get_input_embeddings", "get_output_embeddings")


def speaker_of(model: Any) -> str:
    """The name of the part of a live model that reads and writes text; empty where the whole does.

    transformers takes the text model of that part for the whole's.
    """
    from torch import nn

    if type(model).forward is not nn.Module.forward:
        return ""
    text = model.config.get_text_config().model_type
    parts = ((name, getattr(part, "config", None)) for name, part in model.named_children())
    return next((name for name, config in parts if config and config.get_text_config().model_type == text), "")


def beside(model: Any) -> tuple[str, ...]:
    """The names of the parts beside the one that reads and writes text; none where the whole does."""
    speaker = speaker_of(model)
    return tuple(name for name, _ in model.named_children() if name != speaker) if speaker else ()


def head_of(model: Any) -> Any:
    """The module that makes logits of a live model's hidden states, of a part that has it where the whole does not say;
    None where none does."""
    parts = (part for part in model.modules() if hasattr(part, "get_output_embeddings"))
    return next((head for part in parts if (head := part.get_output_embeddings()) is not None), None)


def speaking(model: Any) -> Any:
    """The model, which from now on answers by the part that reads and writes text, under the names of the whole."""
    if speaker := speaker_of(model):
        for name in _THE_SPEAKERS:
            setattr(model, name, getattr(getattr(model, speaker), name))
        _generate_text_alone(model, speaker)
    return model


def _generate_text_alone(model: Any, speaker: str) -> None:
    """Have `generate` be called and answer as other models' do: its options have the speaker's name before them, and
    one of them says where an answer ends, whatever the generation config says."""
    generate = model.generate
    model.generation_config.eos_token_id = signature(generate).parameters[f"{speaker}_eos_token_id"].default

    def generated(max_new_tokens: int, **given: Any) -> Any:
        return generate(**given, **{f"{speaker}_max_new_tokens": max_new_tokens}, return_audio=False)

    model.generate = generated
