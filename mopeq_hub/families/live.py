"""The live model: what `from_pretrained` would build, on the meta device, with transformers' own way from file names to
it.

Nothing here is copied from transformers: class, parameters, renamings and conversions are asked of the installed
version, so that what is written is what that version's loader looks for.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub.errors import MopeqError
from mopeq_hub.families.speaking import beside, speaker_of, speaking
from mopeq_hub.modeling.registry import added

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LiveModel:
    """A model on the meta device. `task` is the Hub's name for what it does, `auto_class` the class that loads it.
    speaker, beside: of a model of several parts, the name of the one that answers in text, and those of the others."""

    model: "PreTrainedModel"
    experts_per_token: int
    task: str
    auto_class: str
    renamings: list[Any]
    converters: list[Any]
    shapes: dict[str, tuple[int, ...]]
    tied: frozenset[str]
    speaker: str
    beside: tuple[str, ...]

    @classmethod
    def build(cls, config_path: Path, where: str, dtype: str | None = None) -> "LiveModel":
        """The live model of the config.json at `config_path`, in `dtype` or the config's own.

        Raises MopeqError where transformers does not know it.
        """
        import torch
        import transformers
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        # A generation config of the family's defaults is logged at every instantiation: not the user's business.
        logging.getLogger("transformers.generation").setLevel(logging.ERROR)
        transformers.utils.logging.set_verbosity_error()
        _check_known(config_path, where)
        try:
            config = transformers.AutoConfig.from_pretrained(config_path.parent, trust_remote_code=False)
            task, auto_class = _task(config)
            with torch.device("meta"):
                model = auto_class.from_config(config, **({"dtype": dtype} if dtype else {}))
            experts_per_token = _experts_per_token(model.config.get_text_config())
        except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise MopeqError(
                f"transformers {transformers.__version__} cannot build {where} from its config: "
                f"{str(error).splitlines()[0]}",
                "check config.json, or install a transformers that knows this model",
            ) from None
        mapping = get_model_conversion_mapping(model)
        return cls(
            model=speaking(model),
            experts_per_token=experts_per_token,
            task=task,
            auto_class=auto_class.__name__,
            renamings=[step for step in mapping if not isinstance(step, WeightConverter)],
            converters=[step for step in mapping if isinstance(step, WeightConverter)],
            shapes={name: tuple(value.shape) for name, value in model.state_dict().items()},
            tied=frozenset(model.all_tied_weights_keys),
            speaker=speaker_of(model),
            beside=beside(model),
        )

    def name_of(self, source_name: str) -> tuple[str, str | None, Any]:
        """Live name of a file's tensor, and the pattern that matched it and its converter, if it has any."""
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        live, pattern = rename_source_key(source_name, self.renamings, self.converters, prefix, self.shapes)
        if live not in self.shapes and source_name in self.shapes:
            return source_name, None, None
        for converter in self.converters:
            if pattern is not None and pattern in converter.source_patterns:
                return live, pattern, converter
        return live, None, None

    @staticmethod
    def kinds_of(converter: Any) -> list[str]:
        """The names of the operations of a converter, in order; none where there is no converter."""
        return [] if converter is None else [type(operation).__name__ for operation in converter.operations]

    def parts_of(self, live_name: str, pattern: str) -> list[str]:
        """Live names, in order of their rows, of the parameters into which transformers cuts a file's tensor.

        None of them where the converter with this pattern does anything else.
        """
        from transformers.core_model_loading import Chunk, Split

        converter = next(each for each in self.converters if pattern in each.source_patterns)
        cut = converter.operations[0]
        if len(converter.operations) > 1 or not isinstance(cut, Chunk | Split) or cut.dim != 0:
            return []
        first, *_ = converter.target_patterns
        return [live_name.replace(first, target, 1) for target in converter.target_patterns]


def _check_known(config_path: Path, where: str) -> None:
    """Raises MopeqError on a model type that transformers does not have, whether or not code for it comes along."""
    import transformers

    said = json.loads(config_path.read_text("utf-8"))
    if said.get("model_type") in transformers.CONFIG_MAPPING:
        return
    installed = f"transformers {transformers.__version__}"
    kind = f"the model type {said.get('model_type')!r} of {where} is not one that {installed} has"
    if "auto_map" in said:
        kind += ", and the code that comes with it is never run here"
    raise MopeqError(kind, "check config.json, or install a transformers that has it")


_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "top_k_experts",
    "moe_topk",
    "moe_k",
    "top_k",
    "moe_top_k",
)


_ONE_PER_TOKEN = ("switch_transformers",)
"""Whose config has no number, since it is always this."""


def _experts_per_token(config: Any) -> int:
    """How many experts the router chooses, by a name that a text config has for it.

    optimum's view of a config finds a number under the names of all times, nested ones too.
    """
    from optimum.utils import NormalizedTextConfig

    if config.model_type in _ONE_PER_TOKEN:
        return 1
    for name in _PER_TOKEN:
        found = getattr(NormalizedTextConfig.with_args(allow_new=True, per_token=name)(config), "per_token", None)
        if isinstance(found, list):
            found = max(found)
        if type(found) is int and found > 0:
            return found
    raise ValueError("its config does not say how many experts a token is sent to")


def _task(config: Any) -> tuple[str, Any]:
    """The task of the architecture the config names, by optimum's task registry, and the auto class for it.

    Our own models are no part of transformers, and some repos of theirs name no architecture: they are asked pictures.
    """
    import transformers
    from optimum.exporters.tasks import TasksManager

    own = added(config.model_type)
    if own and own.processor:
        return "image-text-to-text", transformers.AutoModelForImageTextToText
    known = transformers.models.auto.modeling_auto
    by_all_senses = config.model_type in known.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES
    if by_all_senses and config.model_type not in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return "any-to-any", transformers.AutoModelForMultimodalLM
    architecture = next(iter(config.architectures or []), None)
    model_class = getattr(transformers, architecture or "", None)
    if model_class is None:
        raise ValueError(f"its architecture {architecture!r} is not part of transformers")
    task = TasksManager.infer_task_from_model(model_class)
    return task, TasksManager.get_model_class_for_task(task, model_type=config.model_type)
