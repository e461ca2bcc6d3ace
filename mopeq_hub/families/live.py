"""The live model: what `from_pretrained` would build, on the meta device, with transformers' own way from file names to
it.

Nothing here is copied from transformers: class, parameters, renamings and conversions are asked of the installed
version, so that what is written is what that version's loader looks for.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub.errors import MopeqError
from mopeq_hub.families.base import Family
from mopeq_hub.modeling.registry import added

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LiveModel:
    """A model on the meta device. `task` is the Hub's name for what it does, `auto_class` the class that loads it.

    normalized: optimum's view of the text config, which finds a count under the names of all times: `num_layers`,
    `num_experts`, `experts_per_token`.
    """

    model: "PreTrainedModel"
    normalized: Any
    task: str
    auto_class: str
    renamings: list[Any]
    converters: list[Any]
    shapes: dict[str, tuple[int, ...]]
    tied: frozenset[str]

    @classmethod
    def build(cls, config_path: Path, family: Family, where: str, dtype: str | None = None) -> "LiveModel":
        """The live model of the config.json at `config_path`, in `dtype` or the config's own.

        Raises MopeqError where transformers does not know it.
        """
        import torch
        import transformers
        from optimum.utils import NormalizedTextConfig
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        # A generation config of the family's defaults is logged at every instantiation: not the user's business.
        logging.getLogger("transformers.generation").setLevel(logging.ERROR)
        transformers.utils.logging.set_verbosity_error()
        try:
            config = transformers.AutoConfig.from_pretrained(config_path.parent)
            task, auto_class = _task(config)
            with torch.device("meta"):
                model = auto_class.from_config(config, **({"dtype": dtype} if dtype else {}))
        except (ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            raise MopeqError(
                f"transformers {transformers.__version__} cannot build {where} from its config: "
                f"{str(error).splitlines()[0]}",
                "check config.json, or install a transformers that knows this model",
            ) from None
        mapping = get_model_conversion_mapping(model)
        counts = NormalizedTextConfig.with_args(
            allow_new=True, num_experts=family.experts_count, experts_per_token=str(family.experts_per_token)
        )
        return cls(
            model=model,
            normalized=counts(config.get_text_config()),
            task=task,
            auto_class=auto_class.__name__,
            renamings=[step for step in mapping if not isinstance(step, WeightConverter)],
            converters=[step for step in mapping if isinstance(step, WeightConverter)],
            shapes={name: tuple(value.shape) for name, value in model.state_dict().items()},
            tied=frozenset(model.all_tied_weights_keys),
        )

    def name_of(self, source_name: str) -> tuple[str, str | None, list[str]]:
        """Live name of a file's tensor, the converter's pattern that matched it if any, and all patterns of that
        converter."""
        from transformers.core_model_loading import rename_source_key

        prefix = self.model.base_model_prefix
        live, pattern = rename_source_key(source_name, self.renamings, self.converters, prefix, self.shapes)
        for converter in self.converters:
            if pattern is not None and pattern in converter.source_patterns:
                return live, pattern, list(converter.source_patterns)
        return live, None, []

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


def _task(config: Any) -> tuple[str, Any]:
    """The task of the architecture the config names, by optimum's task registry, and the auto class for it.

    Our own models are no part of transformers, and some repos of theirs name no architecture: they are asked pictures.
    """
    import transformers
    from optimum.exporters.tasks import TasksManager

    own = added(config.model_type)
    if own and own.processor:
        return "image-text-to-text", transformers.AutoModelForImageTextToText
    architecture = next(iter(config.architectures or []), None)
    model_class = getattr(transformers, architecture or "", None)
    if model_class is None:
        raise ValueError(f"its architecture {architecture!r} is not part of transformers")
    task = TasksManager.infer_task_from_model(model_class)
    return task, TasksManager.get_model_class_for_task(task, model_type=config.model_type)
