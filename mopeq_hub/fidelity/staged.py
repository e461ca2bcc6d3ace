"""A live model without weights, run one part at a time: what comes before its decoder layers, each layer, what follows.

All code that computes is transformers' own: pictures, their places among the tokens, masks, rotary embeddings and what
a family does between layers. To run decoder layer n, the text model's own forward is called once more on the inputs
that were kept for it; layers before n answer with the hidden states that are known already, and the call is left as
soon as layer n has answered. So a part needs its own weights, the few that the text model has around its layers, and
nothing need be kept but hidden states and the text model's inputs.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mopeq_hub.errors import MopeqError
from mopeq_hub.families.live import fill_buffers
from mopeq_hub.families.speaking import beside, head_of
from mopeq_hub.questions.inputs import Row, answer_options

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Given = dict[str, Any]
"""Arguments of the text model's forward for one batch, and `EMBEDDED`."""
EMBEDDED = "embedded"
"""What the embeddings make of the batch's tokens, where the text model is given the tokens; else None."""
State = torch.Tensor | tuple[torch.Tensor | None, ...]
"""What a decoder layer gives: hidden states [rows, tokens, ...], in some families first of others that the next layer
is given too, such as which tokens it attends to."""


_NOTHING = torch.empty(0)


def hidden_states(state: State) -> torch.Tensor:
    """The hidden states of what a decoder layer gave."""
    if isinstance(state, torch.Tensor):
        return state
    first = state[0]
    assert first is not None
    return first


class _ReachedError(BaseException):
    """Leaves transformers' code with what was waited for; past any handler of errors on the way."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self.found = found


class StagedModel:
    """Runs one part of a model at a time, with the weights that `weights` puts in place meanwhile.

    before, layers, after: names of the parameters and persistent buffers that each part needs; what a model of several
    has beside the one that answers is in none. around: those of `before` that every part needs. tied: of those that
    have no values of their own, the name of what they share them with. Hidden states are in the model's dtype.
    """

    def __init__(self, model: "PreTrainedModel", blocks: str) -> None:
        """model: on the meta device; it is changed and must not be used otherwise. blocks: name of its list of decoder
        layers."""
        self._model = model.eval()
        fill_buffers(model)
        # What is collected on the way would be wanted of layers that do not run.
        model.config.get_text_config().output_router_logits = False
        self._text = model.get_submodule(blocks.rpartition(".")[0])
        self._blocks = model.get_submodule(blocks)
        self.tied: dict[str, str] = dict(model.all_tied_weights_keys)
        self._meta: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
        self.layers = [self._names(layer) for layer in self._blocks.children()]
        self.after = self._names_after()
        elsewhere = set(self.after).union(*self.layers)
        idle = beside(model)
        self.before = [name for name in self._meta if name not in elsewhere and name.partition(".")[0] not in idle]
        known = {*self._names(model.get_input_embeddings()), *self.tied}
        inside = set(self._names(self._text)) - known
        self.around = [name for name in self.before if name in inside]

        self._enter: Callable[..., Any] = self._text.forward
        self._text.forward = self._take_inputs
        self._given: Given | None = None
        self._layer = 0
        self._earlier: State = _NOTHING
        self._hidden: State = _NOTHING
        for number, layer in enumerate(self._blocks.children()):
            layer.forward = partial(self._answer, number, layer.forward)

    @property
    def dtype(self) -> torch.dtype:
        return self._model.dtype

    def empty(self, name: str) -> torch.Tensor:
        """A tensor like the parameter or buffer of that name, in the dtype in which transformers would load it."""
        meta = self._meta[name]
        precise = set(self._model._keep_in_fp32_modules_strict or ())
        if self.dtype == torch.float16:
            precise |= set(self._model._keep_in_fp32_modules or ())
        stays = meta.is_floating_point() and not precise.isdisjoint(name.split("."))
        return torch.empty_like(meta, device="cpu", dtype=torch.float32 if stays else meta.dtype, requires_grad=False)

    @contextmanager
    def weights(self, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """Parameters and buffers by name, in their places until the end of the context."""
        try:
            for name, tensor in tensors.items():
                self._place(name, tensor)
            yield
        finally:
            for name in tensors:
                self._place(name, self._meta[name])

    def begin(self, inputs: dict[str, torch.Tensor]) -> Given:
        """What the text model is given for these inputs; needs the weights of `before`."""
        with torch.inference_mode():
            given = dict(self._until(lambda: self._model(**inputs, use_cache=False)))
            embeds = given.get("inputs_embeds") is None
            return {**given, EMBEDDED: self._model.get_input_embeddings()(given["input_ids"]) if embeds else None}

    def layer(self, number: int, given: Given, hidden: State | None) -> State:
        """What decoder layer `number` gives, from what the one before gave, None for the first."""
        with torch.inference_mode(), self._known(number, given, hidden):
            found: State = self._until(self._go_through)
        if torch.is_tensor(found):
            return found
        if not isinstance(found, tuple) or not all(each is None or torch.is_tensor(each) for each in found):
            raise MopeqError(
                f"decoder layers of {type(self._model).__name__} give more than hidden states",
                "this variant cannot be measured block by block; use a machine that holds the whole model",
            )
        return found

    def logits(self, ids: torch.Tensor, given: Given, hidden: State, row: Row) -> torch.Tensor:
        """Logits [rows, tokens, vocabulary] of token ids like `row`'s; needs the weights of `after`.

        Tokens are those that predict the answer where the model can be asked for them alone, else all.
        """
        with torch.inference_mode(), self._known(len(self.layers), given, hidden):
            return self._model(input_ids=ids, use_cache=False, **answer_options(self._model, row)).logits

    @contextmanager
    def _known(self, layer: int, given: Given, hidden: State | None) -> Iterator[None]:
        """Layers before `layer` answer what is known; those whose answer nobody uses, NaN, lest anybody does."""
        if hidden is not None:
            copied = torch.full_like(hidden_states(hidden), torch.nan)
            self._earlier, self._hidden = copied if torch.is_tensor(hidden) else (copied, *hidden[1:]), hidden
        self._layer, self._given = layer, given
        embeddings = self._model.get_input_embeddings()
        embed = embeddings.forward
        # Pictures and embeddings are in what is given already: their weights are not needed once more.
        embeddings.forward = self._embedded  # type: ignore[method-assign]
        try:
            yield
        finally:
            embeddings.forward = embed  # type: ignore[method-assign]
            self._given = None
            self._earlier = self._hidden = _NOTHING

    def _embedded(self, tokens: torch.Tensor) -> torch.Tensor:
        """Stands for the forward of the embeddings; what comes of it before the text model, nobody looks at."""
        assert self._given is not None
        known = self._given[EMBEDDED]
        if known is not None:
            return known
        given = self._given["inputs_embeds"]
        return given.new_zeros(()).expand(*tokens.shape, given.shape[-1])

    def _answer(self, number: int, forward: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """Stands for the forward of decoder layer `number`."""
        if number < self._layer:
            return self._hidden if number == self._layer - 1 else self._earlier
        raise _ReachedError(forward(*arguments, **named))

    def _take_inputs(self, *arguments: Any, **given: Any) -> Any:
        """Stands for the text model's forward: keeps what it is given, or goes through it with what was kept."""
        if self._given is not None:
            return self._go_through()
        raise _ReachedError(signature(self._enter).bind_partial(*arguments).arguments | given)

    def _go_through(self) -> Any:
        """The text model's own forward on what was kept."""
        assert self._given is not None
        return self._enter(**{name: value for name, value in self._given.items() if name != EMBEDDED})

    @staticmethod
    def _until(call: Callable[[], Any]) -> Any:
        try:
            call()
        except _ReachedError as reached:
            return reached.found
        raise RuntimeError("the model did not come to the part that was to be run")

    def _names(self, *modules: nn.Module) -> list[str]:
        """Names in `_meta` of what these modules hold."""
        wanted = {id(module) for module in modules}
        prefixes = tuple(f"{name}." for name, module in self._model.named_modules() if id(module) in wanted)
        return [name for name in self._meta if name.startswith(prefixes)]

    def _names_after(self) -> list[str]:
        """Of what follows the decoder layers: the text model's later children, as transformers orders them, and the
        head."""
        children = list(self._text.children())
        # What holds buffers alone, such as a rotary embedding, runs before the layers, wherever it stands.
        later = [each for each in children[children.index(self._blocks) + 1 :] if any(True for _ in each.parameters())]
        head = head_of(self._model)
        return self._names(*later, *([head] if head is not None else []))

    def _place(self, name: str, tensor: torch.Tensor) -> None:
        path, _, own = name.rpartition(".")
        module = self._model.get_submodule(path)
        if own not in module._parameters:
            module._buffers[own] = tensor
        elif isinstance(tensor, nn.Parameter):
            module._parameters[own] = tensor
        else:
            module._parameters[own] = nn.Parameter(tensor, requires_grad=False)
