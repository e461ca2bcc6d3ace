"""The live model: what `from_pretrained` would build, on the meta device, with transformers' own way from file names to
it.

Nothing here is copied from transformers: class, parameters, renamings and conversions are asked of the installed
version, so that what is written is what that version's loader looks for.
"""

import inspect
import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mopeq_hub.errors import MopeqError
from mopeq_hub.families.speaking import beside, speaker_of, speaking
from mopeq_hub.modeling.registry import added
from mopeq_hub.remote_code import RemoteCode, lacking

if TYPE_CHECKING:
    import torch
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
    def build(
        cls, config_path: Path, where: str, dtype: str | None = None, code: RemoteCode | None = None
    ) -> "LiveModel":
        """The live model of the config.json at `config_path`, in `dtype` or the config's own.

        code: that makes it, in files beside config.json, where transformers does not have its kind.
        Raises MopeqError where nothing makes it.
        """
        import transformers
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter

        from mopeq_hub.families.meta import build

        # A generation config of the family's defaults is logged at every instantiation: not the user's business.
        logging.getLogger("transformers.generation").setLevel(logging.ERROR)
        transformers.utils.logging.set_verbosity_error()
        said = json.loads(config_path.read_text("utf-8"))
        if code is None and (lack := lacking(said, where)):
            raise MopeqError(lack, "check config.json, or install a transformers that has it")
        trusted = code is not None
        with _in_words(where, code):
            config = transformers.AutoConfig.from_pretrained(config_path.parent, trust_remote_code=trusted)
            options = {"dtype": dtype} if dtype else {}
            if code:
                task, auto_class = code.task, getattr(transformers, code.auto_class)
                # By the class of a config, transformers takes the model's class that it made first; that may be of
                # another commit, whose code differs in what is not the config's.
                auto_class._model_mapping._extra_content.pop(type(config), None)
                with on_meta():
                    model = auto_class.from_config(config, trust_remote_code=True, **options)
            else:
                task, auto_class = _task(config)
                model = build(auto_class, config, **options)
            experts_per_token = _experts_per_token(model.config.get_text_config())
            mapping = get_model_conversion_mapping(model)
            tied = frozenset(model.all_tied_weights_keys)
            if code:
                _check_forward(model, where)
                _check_buffers(model, where)
        return cls(
            model=speaking(model),
            experts_per_token=experts_per_token,
            task=task,
            auto_class=auto_class.__name__,
            renamings=[step for step in mapping if not isinstance(step, WeightConverter)],
            converters=[step for step in mapping if isinstance(step, WeightConverter)],
            shapes={name: tuple(value.shape) for name, value in model.state_dict().items()},
            tied=tied,
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


@contextmanager
def _in_words(where: str, code: RemoteCode | None) -> Iterator[None]:
    """Raises MopeqError where transformers, or the model's own code, which may fail in any way, cannot build it; what
    that code prints is none of a command's output."""
    import transformers

    expected = (ValueError, KeyError, TypeError, AttributeError, ImportError)
    try:
        with redirect_stdout(sys.stderr if code else sys.stdout), warnings.catch_warnings():
            if code:
                # What its authors should know of newer libraries.
                warnings.simplefilter("ignore")
            yield
    except MopeqError:
        raise
    except (Exception, SystemExit) as error:
        if code is None and not isinstance(error, expected):
            raise
        installed = f"transformers {transformers.__version__}"
        why = next(iter(str(error).splitlines()), type(error).__name__)
        if code is None:
            raise MopeqError(
                f"{installed} cannot build {where} from its config: {why}",
                "check config.json, or install a transformers that knows this model",
            ) from None
        raise MopeqError(
            f"the code that comes with {where} does not run with {installed}: {type(error).__name__}: {why[:300]}",
            "use a version of it for that transformers",
        ) from None


def _check_forward(model: Any, where: str) -> None:
    """Raises MopeqError where a model that comes with its code is not called as those of transformers are."""
    taken = inspect.signature(model.forward).parameters
    anything = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in taken.values())
    missing = [name for name in ("input_ids", "use_cache") if name not in taken and not anything]
    missing += [] if model.can_generate() else ["generate"]
    if missing:
        raise MopeqError(
            f"{type(model).__name__}, which comes with {where}, knows no {missing[0]}, as models of transformers do",
            "this kind of model is not supported",
        )


def _check_buffers(model: "PreTrainedModel", where: str) -> None:
    """Raises MopeqError where a model that comes with its code would compute with whatever is in memory: code that
    gives buffers their values when it is constructed, as it could until transformers loaded every model on the meta
    device."""
    import transformers

    if unfilled := fill_buffers(model):
        raise MopeqError(
            f"the code of {where} leaves {unfilled[0]} without values where transformers {transformers.__version__} "
            "loads it, and then computes with whatever is in memory",
            "this kind of model is not supported; a newer version of its code may be",
        )


@contextmanager
def on_meta() -> Iterator[None]:
    """Modules made meanwhile take no memory, as where transformers loads a model."""
    import torch
    from transformers import initialization

    with torch.device("meta"), getattr(initialization, "meta_device_safe_creation_ops", nullcontext)():
        yield


def fill_buffers(model: "PreTrainedModel") -> list[str]:
    """Compute buffers that no file holds, such as rotary frequencies, as transformers does when it loads a model; the
    names of those that are left without values."""
    import torch

    buffers: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        for name in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers[name]
            if buffer is not None:
                empty = torch.full_like(buffer, _no_value(buffer.dtype), device="cpu")
                module._buffers[name] = buffers[f"{path}.{name}"] = empty
    # Modules that have some, and those around them, which may fill them: of thousands of experts none.
    concerned = {name[:end] for name in buffers for end in (0, *(each.start() for each in re.finditer(r"\.", name)))}
    for path, module in modules.items():
        module._is_hf_initialized = path not in concerned  # type: ignore[assignment]
    model.initialize_weights()
    return [name for name, buffer in buffers.items() if _has_no_value(buffer)]


def _no_value(dtype: "torch.dtype") -> float | int:
    """What no buffer of this dtype is meant to hold, where there is such a number."""
    import torch

    if dtype.is_floating_point:
        return float("nan")
    return 0 if dtype == torch.bool or dtype.is_complex else torch.iinfo(dtype).min


def _has_no_value(buffer: "torch.Tensor") -> bool:
    if buffer.is_floating_point():
        return bool(buffer.isnan().any())
    none = _no_value(buffer.dtype)
    return none != 0 and bool((buffer == none).any())


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
