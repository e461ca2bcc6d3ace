"""The last guard before something is printed: no secret leaves this process."""

import os
import re

_TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
_SECRET_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN", "GITHUB_TOKEN")


def redact(text: str) -> str:
    """`text` without anything that looks like, or is, a token."""
    for variable in _SECRET_VARIABLES:
        value = os.environ.get(variable)
        if value and len(value) >= 8:
            text = text.replace(value, "***")
    return _TOKEN.sub("***", text)
