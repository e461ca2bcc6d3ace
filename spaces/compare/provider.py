"""The original where this machine cannot hold it: asked through Hugging Face's Inference Providers."""

import base64
import io
import time
from collections.abc import Iterator
from typing import Any

from answer import Answer, Settings, failure, figures
from huggingface_hub import InferenceClient, get_token
from PIL import Image
from publication import Place

LONGEST_SIDE = 1536
"""Pixels; larger pictures are made smaller before they are sent."""

PATIENCE = 120
"""Seconds without a word from the provider."""


class RemoteModel:
    """A model of the Hub, run by whichever provider the Hub's router chooses."""

    loaded = False

    def __init__(self, name: str, place: Place) -> None:
        self.name = name
        self.place = place

    def ask(self, picture: str | None, question: str, settings: Settings) -> Iterator[Answer]:
        """The answer as it grows; never raises for what the provider does."""
        text, started, times = "", time.perf_counter(), []
        yield Answer(status="Asking the inference provider…")
        try:
            client = InferenceClient(provider="auto", api_key=get_token(), timeout=PATIENCE)
            said = client.chat_completion(
                [{"role": "user", "content": content(picture, question)}],
                model=self.place.name,
                max_tokens=settings.length,
                temperature=settings.temperature,
                seed=settings.seed if settings.temperature else None,
                stream=True,
            )
            for part in said:
                word = part.choices[0].delta.content if part.choices else None
                if word:
                    times.append(time.perf_counter())
                    text += word
                    yield Answer(text, "Answering…")
        except Exception as error:
            yield failure(f"The inference provider did not answer for the {self.name} model. {_in_words(error)}", text)
            return
        if not times:
            yield failure(f"The inference provider gave an empty answer for the {self.name} model.")
            return
        rate = (len(times) - 1) / (times[-1] - times[0]) if times[-1] > times[0] else None
        where = "run by an inference provider, network included"
        yield Answer(text, figures(times[0] - started, rate, where), ended=True)


def content(picture: str | None, question: str) -> list[dict[str, Any]]:
    """A question as a chat message's parts; the picture travels inside the request."""
    parts: list[dict[str, Any]] = [{"type": "text", "text": question}]
    if picture:
        parts.insert(0, {"type": "image_url", "image_url": {"url": _data_address(picture)}})
    return parts


def _data_address(picture: str) -> str:
    image = Image.open(picture).convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    written = io.BytesIO()
    image.save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def _in_words(error: Exception) -> str:
    """One line without the address that was asked, in which a token could stand."""
    reason = getattr(error, "server_message", None) or str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {reason[:300]}" if reason else type(error).__name__
