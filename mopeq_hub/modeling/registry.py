"""Which of transformers' auto classes find which of our models, arranged so that importing mopeq_hub imports neither
torch nor transformers."""

import sys
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from mopeq_hub.after_import import after_import


@dataclass(frozen=True)
class Added:
    """A model that transformers does not have. package: its folder here, whose files are configuration_, modeling_ and
    processing_<package>.py; the classes in them by name."""

    package: str
    model_type: str
    config: str
    model: str
    processor: str

    def load(self, part: str) -> Any:
        """The class that is this part: `configuration`, `modeling` or `processing`."""
        names = {"configuration": self.config, "modeling": self.model, "processing": self.processor}
        return getattr(import_module(self._module(part)), names[part])

    def config_unless_halfway(self) -> Any:
        """The config's class, or None while its module is being imported: what that imports may look here meanwhile."""
        module = sys.modules.get(self._module("configuration"))
        return self.load("configuration") if module is None else getattr(module, self.config, None)

    @property
    def auto_map(self) -> dict[str, str]:
        """By which transformers' auto classes find the classes in the files of a repo, where remote code is trusted."""
        auto_classes = {
            "AutoConfig": ("configuration", self.config),
            "AutoModelForImageTextToText": ("modeling", self.model),
            "AutoProcessor": ("processing", self.processor),
        }
        return {auto: f"{part}_{self.package}.{name}" for auto, (part, name) in auto_classes.items()}

    @property
    def files(self) -> list[Path]:
        """The files that make a repo of this model load by itself."""
        return sorted(path for path in (Path(__file__).parent / self.package).glob("*.py") if path.stem != "__init__")

    def _module(self, part: str) -> str:
        return f"mopeq_hub.modeling.{self.package}.{part}_{self.package}"


ADDED = (
    Added(
        "deepseek_vl2",
        "deepseek_vl_v2",
        "DeepseekVLV2Config",
        "DeepseekVLV2ForConditionalGeneration",
        "DeepseekVLV2Processor",
    ),
    Added("molmoe", "molmo", "MolmoeConfig", "MolmoeForConditionalGeneration", "MolmoProcessor"),
)


def added(model_type: str) -> Added | None:
    """The model of ours with this model type, if there is one."""
    return next((each for each in ADDED if each.model_type == model_type), None)


@dataclass(frozen=True)
class _Later:
    load: Callable[[], Any]


class _OnDemand(MutableMapping[Any, Any]):
    """What a mapping holds, and models of ours beside it: key and class of each are imported when somebody looks."""

    def __init__(self, known: Mapping[Any, Any], part: str) -> None:
        self._known = dict(known)
        self._part = part
        self._waiting = list(ADDED)

    def _settled(self) -> dict[Any, Any]:
        for each in list(self._waiting):
            key = each.model_type if self._part == "configuration" else each.config_unless_halfway()
            if key is not None and each in self._waiting:
                self._waiting.remove(each)
                self._known.setdefault(key, _Later(lambda each=each: each.load(self._part)))  # type: ignore[misc]
        return self._known

    def __getitem__(self, key: Any) -> Any:
        value = self._settled()[key]
        if isinstance(value, _Later):
            value = self._known[key] = value.load()
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._settled()

    def __setitem__(self, key: Any, value: Any) -> None:
        self._settled()[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._settled()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self._settled()))

    def __len__(self) -> int:
        return len(self._settled())


def _put_off(mapping: Any, part: str) -> None:
    """Have one of transformers' auto mappings find our classes, without importing them before they are looked up.

    A mapping without the place where transformers keeps registered classes gets them by `register`, at once.
    """
    if isinstance(getattr(mapping, "_extra_content", None), dict):
        mapping._extra_content = _OnDemand(mapping._extra_content, part)
        return
    for each in ADDED:
        key = each.model_type if part == "configuration" else each.load("configuration")
        mapping.register(key, each.load(part), exist_ok=True)


def _configs(module: ModuleType) -> None:
    _put_off(module.CONFIG_MAPPING, "configuration")


def _models(module: ModuleType) -> None:
    _put_off(module.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, "modeling")


def _processors(module: ModuleType) -> None:
    _put_off(module.PROCESSOR_MAPPING, "processing")


_PLACES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _configs,
    "transformers.models.auto.modeling_auto": _models,
    "transformers.models.auto.processing_auto": _processors,
}


def arrange() -> None:
    """From now on transformers' auto classes know our models, whether transformers is imported already or later."""
    after_import(_PLACES)
