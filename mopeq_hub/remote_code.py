"""Code that comes with a model: which files of its repo that is, and where it is run once somebody asked for that.

config.json and the files of tokenizer and processors name classes in an `auto_map`. transformers imports them, and what
they import from beside them, where it is told `trust_remote_code=True`. Of a kind that transformers has, none of it is
needed and none is run. What these files name is a stranger's: each name may only be that of a file of the same repo, so
that the commit which pins the weights pins the code.
"""

import atexit
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from mopeq_hub import workplace
from mopeq_hub.errors import MopeqError
from mopeq_hub.records import sha256_of
from mopeq_hub.source import Source, companions, read_json
from mopeq_hub.untrusted import TRUST

PICTURES = ("processor_config.json", "preprocessor_config.json")
"""One of them says how pictures are prepared."""
_REFERENCE = re.compile(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)
"""What `auto_map` says of a class: the file that it is in, without its ending, and its name."""
_MODULE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_MAX_FILES, _MAX_BYTES = 100, 2_000_000
_LOADERS = ("AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM", "AutoModel")
"""transformers' classes that may load a model, best first; by the last one come those that generate as well."""
_TASKS = {"AutoModelForSeq2SeqLM": "text2text-generation"}
_CUSTOM_GENERATE = "custom_generate/generate.py"
"""What transformers runs in place of its own `generate` where code is trusted; no `auto_map` names it."""
_ALWAYS_THERE = ("accelerate", "huggingface_hub", "numpy", "PIL", "safetensors", "tokenizers", "torch", "transformers")
"""Packages that whoever loads a publication has."""


@dataclass(frozen=True)
class RemoteCode:
    """The code of one model. files: SHA-256, in hex, of each Python file by name. auto_class, task: transformers' class
    that loads it, and the Hub's name for what it does. requires: names of packages that it imports beside those that
    everybody has who loads a publication."""

    files: Mapping[str, str]
    auto_class: str
    task: str
    requires: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"files": dict(self.files), "requires": list(self.requires)}


def lacking(config: Mapping[str, Any], where: str) -> str | None:
    """That transformers does not have the kind of model of a config.json, in words; None where it has."""
    import transformers

    kind = config.get("model_type")
    if isinstance(kind, str) and kind in transformers.CONFIG_MAPPING:
        return None
    return f"the model type {kind!r} of {where} is not one that transformers {transformers.__version__} has"


def code_of(source: Source, config: dict[str, Any], trusted: bool) -> RemoteCode | None:
    """The code that comes with a model, which cannot do without it; None where transformers has its kind, or where
    config.json points to none.

    Raises MopeqError where it is not trusted, or not all in files of the source.
    """
    classes = _auto_map(config)
    # In this order, since importing transformers takes a while.
    lack = lacking(config, source.name) if classes else None
    if lack is None:
        return None
    if not trusted:
        auto_class = next((name for name in (*_LOADERS, "AutoConfig") if name in classes), next(iter(classes)))
        named = next(iter(_references(classes[auto_class])), "nothing")
        raise MopeqError(
            f"{lack}, and the class that its config.json names for it, {named[:200]}, is code that comes with it",
            f"read that code, and add {TRUST} if it may run here",
        )
    auto_class = next((name for name in _LOADERS if name in classes), "")
    if not auto_class or "AutoConfig" not in classes:
        raise MopeqError(
            f"the auto_map of {source.name} names no class for AutoConfig, or none for {', '.join(_LOADERS)}",
            "this kind of model is not supported",
        )
    if _CUSTOM_GENERATE in source.files():
        raise MopeqError(
            f"{source.name} generates text by code of its own ({_CUSTOM_GENERATE})", "this kind is not supported yet"
        )
    pictures = not {*PICTURES}.isdisjoint(source.files())
    task = "image-text-to-text" if pictures else _TASKS.get(auto_class, "text-generation")
    files = _reached(source, config)
    code = RemoteCode(files, auto_class, task, _requires(source, files))
    source.include(code.files)
    keep_apart()
    return code


def _auto_map(content: Mapping[str, Any]) -> dict[str, Any]:
    """A file's `auto_map`; empty where it has none. Older tokenizers have a list, of the slow and the fast class."""
    found = content.get("auto_map")
    if isinstance(found, list):
        return {"AutoTokenizer": found}
    return found if isinstance(found, dict) else {}


def _references(value: Any) -> list[str]:
    """The classes that one entry of an `auto_map` names."""
    return [str(each) for each in (value if isinstance(value, list) else [value]) if each is not None]


def referenced(content: Mapping[str, Any], where: str) -> Iterator[str]:
    """The Python files that the `auto_map` of a JSON object names.

    Raises MopeqError where one is not a class in a file beside it, but code elsewhere.
    """
    for value in _auto_map(content).values():
        for reference in _references(value):
            found = _REFERENCE.fullmatch(reference)
            if found is None:
                raise MopeqError(
                    f"the auto_map of {where} points to {reference[:200]!r}, which is no class in a file beside it",
                    "only code that the model's own commit pins is run; use a copy of the model that holds its code",
                )
            yield f"{found[1]}.py"


def _reached(source: Source, config: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of each Python file that transformers may import of this model, by name."""
    from transformers.dynamic_module_utils import get_relative_imports

    waiting = dict.fromkeys(referenced(config, f"config.json of {source.name}"))
    for name in companions(source):
        if name.endswith("_config.json"):
            waiting |= dict.fromkeys(referenced(read_json(source, name), f"{name} of {source.name}"))
    found: dict[str, str] = {}
    while waiting:
        name = next(iter(waiting))
        del waiting[name]
        _check_file(source, name)
        path = source.path(name)
        found[name] = sha256_of(path)
        try:
            modules = get_relative_imports(path)
        except UnicodeDecodeError:
            raise MopeqError(f"{name} of {source.name} is not UTF-8 text", "download it again") from None
        for module in sorted(modules):
            if not _MODULE.fullmatch(module):
                raise MopeqError(
                    f"{name} of {source.name} imports {'.' + module[:200]!r}, which is no file beside it",
                    "transformers cannot load such code either",
                )
            if f"{module}.py" not in found:
                waiting[f"{module}.py"] = None
        if len(found) + len(waiting) > _MAX_FILES:
            raise MopeqError(f"the code of {source.name} has more than {_MAX_FILES} files", "do not use this source")
    return dict(sorted(found.items()))


def _check_file(source: Source, name: str) -> None:
    """Raises MopeqError where code is missing, is somewhere else, or is no text that a person wrote."""
    if name not in source.files():
        raise MopeqError(f"{source.name} lacks {name}, which its code needs", "finish the download")
    if source.files()[name] > _MAX_BYTES:
        raise MopeqError(f"{name} of {source.name} is too large to be code", "do not use this source")
    if source.strays(name):
        raise MopeqError(
            f"{name} of {source.name} is a link to a file outside of it", "put the file itself in its place"
        )


def _requires(source: Source, names: Iterable[str]) -> tuple[str, ...]:
    """The packages of this machine, by the names that pip knows, that these files import. Those in a `try` are left
    out, as transformers does.

    Raises MopeqError where one is not installed, or a file is not Python.
    """
    from transformers.dynamic_module_utils import get_imports

    try:
        imported = {module for name in names for module in get_imports(source.path(name))}
    except (SyntaxError, ValueError) as error:
        raise MopeqError(
            f"the code of {source.name} is not this Python's: {error}", "use the Python that it was written for"
        ) from None
    imported -= {*_ALWAYS_THERE, *sys.stdlib_module_names}
    packages = metadata.packages_distributions() if imported else {}
    if missing := sorted(imported - packages.keys()):
        raise MopeqError(
            f"the code of {source.name} imports {', '.join(missing)}, which is not installed",
            "install that, and try again",
        )
    return tuple(sorted({packages[module][0] for module in imported}))


def differing(folder: Path, files: Mapping[str, str]) -> str | None:
    """The first of these Python files, given by name with their SHA-256, that is not so in a folder."""
    return next(
        (name for name in files if not (folder / name).is_file() or sha256_of(folder / name) != files[name]), None
    )


def bring(source: Source, code: RemoteCode, folder: Path) -> None:
    """Put the code into a folder, as it is."""
    for name in code.files:
        shutil.copyfile(source.path(name), folder / name)


_kept = ExitStack()
atexit.register(_kept.close)
_settled: list[Path] = []


def keep_apart(folder: Path | None = None) -> None:
    """Have transformers import such code from copies in `folder`, or in one that is gone when this process ends, and
    not from the user's cache of code. The first that asks settles it; where transformers has imported some already, it
    has to go on there."""
    from transformers import dynamic_module_utils as dynamic

    used = dynamic.HF_MODULES_CACHE in sys.path or dynamic.TRANSFORMERS_DYNAMIC_MODULE_NAME in sys.modules
    if not used and not _settled:
        _settled.append(folder or _kept.enter_context(workplace.scratch()))
        dynamic.HF_MODULES_CACHE = str(_settled[0])
