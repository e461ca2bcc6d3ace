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

_TO_TEXT, _PICTURES = "AutoModelForImageTextToText", "AutoImageProcessor"


@dataclass(frozen=True)
class Added:
    """A model that transformers does not have, or not in a form that can be quantized.

    package: its folder here, of the files configuration_, modeling_, processing_ and image_processing_<package>.py.
    auto_class: which of transformers' is to find it. config, model, processor, image_processor: names of its classes;
    of a model of text alone the last two are empty, and the last where pictures are the processor's own work.
    config_home: the module of the config's class where that is transformers' own.
    """

    package: str
    model_type: str
    config: str
    model: str
    processor: str = ""
    image_processor: str = ""
    auto_class: str = _TO_TEXT
    config_home: str = ""

    @property
    def parts(self) -> dict[str, tuple[str, str]]:
        """What files of ours hold: by transformers' auto class, the part it is and the name of the class."""
        parts = {"AutoConfig": ("configuration", "" if self.config_home else self.config)}
        parts |= {self.auto_class: ("modeling", self.model), "AutoProcessor": ("processing", self.processor)}
        parts[_PICTURES] = ("image_processing", self.image_processor)
        return {auto: (part, name) for auto, (part, name) in parts.items() if name}

    def load(self, part: str) -> Any:
        """The class that is this part: `configuration`, `modeling`, `processing` or `image_processing`; of the last,
        one for each library that pictures may be prepared with."""
        names = {"configuration": self.config, "modeling": self.model, "processing": self.processor}
        found = getattr(import_module(self._module(part)), names.get(part, self.image_processor))
        return {"pil": found, "torchvision": found} if part == "image_processing" else found

    def config_unless_halfway(self) -> Any:
        """The config's class, or None while its module is being imported: what that imports may look here meanwhile."""
        module = sys.modules.get(self._module("configuration"))
        return self.load("configuration") if module is None else getattr(module, self.config, None)

    @property
    def auto_map(self) -> dict[str, str]:
        """By which transformers' auto classes find the classes in the files of a repo, where remote code is trusted."""
        return {auto: f"{part}_{self.package}.{name}" for auto, (part, name) in self.parts.items()}

    @property
    def files(self) -> list[Path]:
        """The files that make a repo of this model load by itself."""
        return sorted(path for path in (Path(__file__).parent / self.package).glob("*.py") if path.stem != "__init__")

    def _module(self, part: str) -> str:
        if part == "configuration" and self.config_home:
            return self.config_home
        return f"mopeq_hub.modeling.{self.package}.{part}_{self.package}"


ADDED = (
    Added(
        "deepseek_vl2",
        "deepseek_vl_v2",
        "DeepseekVLV2Config",
        "DeepseekVLV2ForConditionalGeneration",
        "DeepseekVLV2Processor",
    ),
    Added(
        "molmoe",
        "molmo",
        "MolmoeConfig",
        "MolmoeForConditionalGeneration",
        "MolmoProcessor",
        "MolmoImageProcessor",
    ),
    Added(
        "switch_transformers",
        "switch_transformers",
        "SwitchTransformersConfig",
        "SwitchTransformersForConditionalGeneration",
        auto_class="AutoModelForSeq2SeqLM",
        config_home="transformers.models.switch_transformers.configuration_switch_transformers",
    ),
)


def added(model_type: str) -> Added | None:
    """The model of ours with this model type, if there is one."""
    return next((each for each in ADDED if each.model_type == model_type), None)


@dataclass(frozen=True)
class _Later:
    load: Callable[[], Any]


class _OnDemand(MutableMapping[Any, Any]):
    """What a mapping holds, and models of ours beside it: key and class of each are imported when somebody looks."""

    def __init__(self, known: Mapping[Any, Any], auto_class: str) -> None:
        self._known = dict(known)
        self._auto_class = auto_class
        self._waiting = [each for each in ADDED if auto_class in each.parts]

    def _settled(self) -> dict[Any, Any]:
        for each in list(self._waiting):
            key = each.model_type if self._auto_class == "AutoConfig" else each.config_unless_halfway()
            if key is not None and each in self._waiting:
                self._waiting.remove(each)
                part, _ = each.parts[self._auto_class]
                self._known.setdefault(key, _Later(lambda each=each, part=part: each.load(part)))  # type: ignore[misc]
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


def _put_off(mapping: Any, auto_class: str) -> None:
    """Have one of transformers' auto mappings find our classes, without importing them before they are looked up.

    A mapping without the place where transformers keeps registered classes gets them by `register`, at once.
    """
    if isinstance(getattr(mapping, "_extra_content", None), dict):
        mapping._extra_content = _OnDemand(mapping._extra_content, auto_class)
        return
    for each in ADDED:
        if auto_class in each.parts:
            key = each.model_type if auto_class == "AutoConfig" else each.load("configuration")
            mapping.register(key, each.load(each.parts[auto_class][0]), exist_ok=True)


def _configs(module: ModuleType) -> None:
    _put_off(module.CONFIG_MAPPING, "AutoConfig")


def _models(module: ModuleType) -> None:
    _put_off(module.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, _TO_TEXT)
    _put_off(module.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, "AutoModelForSeq2SeqLM")


def _processors(module: ModuleType) -> None:
    _put_off(module.PROCESSOR_MAPPING, "AutoProcessor")


def _image_processors(module: ModuleType) -> None:
    _put_off(module.IMAGE_PROCESSOR_MAPPING, _PICTURES)


_PLACES: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _configs,
    "transformers.models.auto.image_processing_auto": _image_processors,
    "transformers.models.auto.modeling_auto": _models,
    "transformers.models.auto.processing_auto": _processors,
}


def arrange() -> None:
    """From now on transformers' auto classes know our models, whether transformers is imported already or later."""
    after_import(_PLACES)
