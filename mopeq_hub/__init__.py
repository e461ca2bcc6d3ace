"""Publish mixture-of-experts vision-language models with a bit width of its own for every expert.

The three verbs and the one `Recipe` that steers them are the public interface. They are imported on first use, so that
`import mopeq_hub` itself costs nothing: no torch, no transformers. It lets transformers' auto classes find the models
in `modeling/`, and mends what auto-round's loader gets wrong, whether these are imported already or come later.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mopeq_hub.modeling.mends import arrange as _arrange_mends
from mopeq_hub.modeling.registry import arrange as _arrange
from mopeq_hub.version import __version__

if TYPE_CHECKING:
    from mopeq_hub.errors import MopeqError as MopeqError
    from mopeq_hub.pipeline import plan as plan
    from mopeq_hub.pipeline import publish as publish
    from mopeq_hub.pipeline import quantize as quantize
    from mopeq_hub.recipe import Recipe as Recipe
    from mopeq_hub.runtime.loading import accelerate as accelerate
    from mopeq_hub.runtime.loading import load as load
    from mopeq_hub.variants import publish_variants as publish_variants

_HOMES = {
    "accelerate": "mopeq_hub.runtime.loading",
    "load": "mopeq_hub.runtime.loading",
    "publish": "mopeq_hub.pipeline",
    "plan": "mopeq_hub.pipeline",
    "quantize": "mopeq_hub.pipeline",
    "publish_variants": "mopeq_hub.variants",
    "Recipe": "mopeq_hub.recipe",
    "MopeqError": "mopeq_hub.errors",
}

__all__ = [
    "MopeqError",
    "Recipe",
    "__version__",
    "accelerate",
    "load",
    "plan",
    "publish",
    "publish_variants",
    "quantize",
]

_arrange()
_arrange_mends()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'mopeq_hub' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
