"""`load` and `accelerate`: a published model that computes with its packed weights as they lie in its files.

transformers loads it, in the model's own classes, by a quantizer of ours in the place of auto-round's: experts are
never taken apart into modules, and their tensors stay mapped from the files.
"""

import copy
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils import cached_file
from transformers.utils.quantization_config import QuantizationConfigMixin

from mopeq_hub.modeling.mends import mend_for
from mopeq_hub.runtime.placing import OFFSETS, replace, together

_METHOD = "mopeq-packed"
_FETCHING = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` by which any file of a repo is got."""
_log = logging.getLogger("mopeq_hub")


@register_quantization_config(_METHOD)
class PackedConfig(QuantizationConfigMixin):
    """The `quantization_config` of a publication while it is loaded by the runtime; saved, it is as it was.

    tensors: those of a model that is loaded already; None where they are read from files.
    """

    def __init__(self, published: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        self.quant_method: Any = _METHOD
        self.published, self.tensors = dict(published), tensors

    def get(self, name: str, default: Any = None) -> Any:
        """transformers asks a config for its method as if it were a dictionary."""
        return _METHOD if name == "quant_method" else default

    def to_dict(self) -> dict[str, Any]:
        return dict(self.published)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PackedConfig":
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tensors": None}


@register_quantizer(_METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts modules that compute with packed weights in place, and lets transformers load all other tensors."""

    quantization_config: PackedConfig

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        held_already = self.quantization_config.tensors
        self._tensors = _Mapped(kwargs["checkpoint_files"]) if held_already is None else held_already
        packing_format = self.quantization_config.published["packing_format"]
        self._places = replace(model, self._tensors, packing_format)
        held = "|".join(sorted({name.rpartition(".")[2] for name in self._places.experts})) or "$^"
        model._keys_to_ignore_on_load_unexpected = {
            *(model._keys_to_ignore_on_load_unexpected or ()),
            rf"\.({held})\..*\.(qweight|qzeros|scales|bias)$",
        }

    def update_weight_conversions(self, weight_conversions: list[Any], model: Any) -> list[Any]:
        """Tensors are published under the names of the live model and as it holds them, but for experts that are not
        packed."""
        return [step for name, form in self._places.apart.items() for step in together(name, form)]

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self._places.fill(self._tensors, model.dtype)
        del self._places, self._tensors
        self.quantization_config.tensors = None
        if mend := mend_for(model.config.model_type):
            mend.loaded(model)
        return model

    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


class _Mapped(Mapping[str, torch.Tensor]):
    """The tensors of safetensors files, mapped: what nobody looks at takes no memory."""

    def __init__(self, files: list[str]) -> None:
        self._files = [safe_open(file, "pt") for file in files]
        self._homes = {name: file for file in self._files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._homes[name].get_tensor(name)  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)


def load(repo: str | Path, **kwargs: Any) -> Any:
    """The model of a publication, as `from_pretrained` of its auto class gives it, computing with its packed weights.

    repo: a folder, or owner/name on the Hub. kwargs: those of `from_pretrained`. Activations are in the dtype that the
    source is stored in, unless `dtype` says otherwise; sums are float32. With a `device_map` to anything but the CPU it
    is what `from_pretrained` gives, and where the repo is no publication, which a line says.

    Raises MopeqError where a packed weight is missing or not what config.json says.
    """
    fetching = {name: kwargs[name] for name in _FETCHING if name in kwargs}
    trusted = {"trust_remote_code": kwargs["trust_remote_code"]} if "trust_remote_code" in kwargs else {}
    config = kwargs.pop("config", None) or transformers.AutoConfig.from_pretrained(repo, **fetching, **trusted)
    loader = _loader_of(repo, config, fetching)
    published = getattr(config, "quantization_config", None)
    if trouble := _trouble_with(published):
        _log.warning("%s %s; it is loaded as it is", repo, trouble)
    elif kwargs.get("device_map") in (None, "cpu") or not torch.accelerator.is_available():
        kwargs.pop("device_map", None)
        config.quantization_config = PackedConfig(_document(published))
    return loader.from_pretrained(repo, config=config, **kwargs)


def accelerate(model: Any) -> Any:
    """The same model, loaded by `from_pretrained`, computing from now on with its packed weights as they lie in memory.

    It is changed in place, and returned. A model that is no publication, or on another device than the CPU, stays as it
    is, which a line says.
    """
    published = getattr(model.config, "quantization_config", None)
    if isinstance(published, PackedConfig):
        return model
    trouble = _trouble_with(published)
    if not trouble and model.device.type != "cpu":
        trouble = f"is on {model.device}, where auto-round's own kernels compute"
    if trouble:
        _log.warning("this model %s; it stays as it is", trouble)
        return model
    config = copy.deepcopy(model.config)
    config._experts_implementation = "eager"
    options = {"dtype": model.dtype, "config": config}
    if any(type(module).__module__.startswith("auto_round_kernel") for module in model.modules()):
        # Its kernels pack weights in a way of their own; the published ones lie in the files.
        config.quantization_config = PackedConfig(_document(published))
        made = type(model).from_pretrained(
            model.name_or_path, revision=getattr(config, "_commit_hash", None), **options
        )
    else:
        tensors = model.state_dict()
        config.quantization_config = PackedConfig(_document(published), tensors)
        made = type(model).from_pretrained(None, state_dict=tensors, **options)
    made.generation_config, made.training = getattr(model, "generation_config", None), model.training
    model.__class__, model.__dict__ = made.__class__, made.__dict__
    return model


def change_dtype(model: Any, dtype: torch.dtype) -> None:
    """Have a quantized model compute in this dtype. transformers refuses that, though its modules compute in any; some
    vision parts go by what their config says."""
    torch.nn.Module.to(model, dtype)
    for module in model.modules():
        if hasattr(module, "config") and hasattr(module, "dtype"):
            module.config.dtype = dtype


def _loader_of(repo: str | Path, config: Any, fetching: dict[str, Any]) -> Any:
    """The auto class that a publication's manifest names, else the class that config.json does."""
    manifest = cached_file(repo, "mopeq.json", _raise_exceptions_for_missing_entries=False, **fetching)
    named = _auto_class(Path(manifest)) if manifest else ""
    if named.startswith("AutoModel") and hasattr(transformers, named):
        return getattr(transformers, named)
    architecture = next(iter(config.architectures or []), "AutoModel")
    return getattr(transformers, architecture, transformers.AutoModel)


def _auto_class(manifest: Path) -> str:
    """The auto class that a manifest names; empty where it does not, whoever wrote it."""
    try:
        return str(json.loads(manifest.read_text("utf-8"))["model"]["auto_class"])
    except (ValueError, KeyError, TypeError):
        return ""


def _trouble_with(published: Any) -> str:
    """Why a `quantization_config` is no publication's, to end a sentence about the model; empty where it is one's."""
    if published is None:
        return "is not quantized"
    said = _document(published)
    if said.get("quant_method") != "auto-round":
        return f"is quantized by {said.get('quant_method')}, not by mopeq-hub"
    if said.get("packing_format") not in OFFSETS:
        return f"is packed as {said.get('packing_format')}, which is not how mopeq-hub packs"
    return ""


def _document(published: Any) -> dict[str, Any]:
    said = dict(published if isinstance(published, dict) else published.to_dict())
    method = said.get("quant_method")
    return {**said, "quant_method": getattr(method, "value", method)}
