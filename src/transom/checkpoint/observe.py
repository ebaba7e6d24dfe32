"""Look into a model while it runs: attention, states, head outputs and activations, reduced on the fly.

    with observing(model, [3, 4], ["attention"], lambda kind, layer, p_BHTS: p_BHTS[:, :, -1].max()) as seen:
        model(input_ids=ids)
    seen["attention", 3]  # one value a pass

A tensor is given to `reduce` when its layer has run and is not kept: what stays is what `reduce` returns.
It is the model's own, with its gradients; an exception in `reduce` ends the pass, as where later layers need
not run. In generation a pass has the prompt, then one token each; the last token that is generated is never
fed back, and so has no state.
Threat model: none here. Does not protect anything: what is seen tells most of the input.
Source: forward hooks of torch. Probabilities exist under eager attention alone: others return none without a
word, so it is set for the while, and their shape is checked. `rows` are the same, computed beside sdpa where
the model runs with it (`rows`), which costs less where few layers are looked at; no gradient goes through.

Shapes: B texts, T tokens of this pass, S tokens so far, D model width, H query heads, K head width, N inner
neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from transom.checkpoint.families import Names, family_of
from transom.checkpoint.rows import beside, listening
from transom.errors import MisconfiguredError, NotYetError

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["attention", "rows", "hidden", "heads", "mlp", "attention_out", "mlp_in", "mlp_out"]
Reduce = Callable[[Kind, int, "Tensor"], Any]
Seen = dict[tuple[Kind, int], list[Any]]
_Places = dict[Kind, tuple[str, Literal["before", "after"]]]


class Span(NamedTuple):
    """A row of a batch that is watched while it grows: its positions so far, how many of these are the
    prompt's, and what a watch keeps of it from one call to the next."""

    length: int
    prompt: int
    kept: dict[str, Any]


def _places(names: Names) -> _Places:
    """The module of a block at which each kind is seen, "" being the block; before it runs, or after."""
    return {
        "attention": (names.attention, "after"),  # probabilities [B, H, T, S]
        "rows": (names.attention, "after"),
        "heads": (names.attention_out, "before"),  # what each head found [B, T, H, K]
        "attention_out": (names.attention_out, "after"),  # what attention adds to the stream [B, T, D]
        "mlp_in": (names.mlp_up, "before"),  # [B, T, D]
        "mlp": (names.mlp_down, "before"),  # activations of the inner neurons [B, T, N]
        "mlp_out": (names.mlp, "after"),  # what the MLP adds to the stream [B, T, D]
        "hidden": ("", "after"),  # the stream after the block, before any last norm [B, T, D]
    }


class Observer:
    """Looks at parts of a model, which it finds once, in as many passes as one likes.

    `want` has the layers of each kind. Layers count from 0; layer -1 is the first block's input, and has
    "hidden" alone. Raises MisconfiguredError (no such layer), NotYetError (an architecture or a part that is
    not known).
    """

    def __init__(self, model: Any, want: Mapping[Kind, Iterable[int]], reduce: Reduce) -> None:
        config = model.config
        family = family_of({"model_type": config.model_type})
        if family is None:
            raise NotYetError(
                f"the parts of a {config.model_type!r} model are not known; nothing is observed"
            )
        blocks = list(getattr(model, family.names.trunk, model).get_submodule(family.names.blocks))
        self._model, self._want, self._seen, places = model, frozenset(want), Seen(), _places(family.names)
        self._seats: list[tuple[Kind, Any, bool, Callable[[Any], None]]] = []
        for kind, layers in want.items():
            path, side = places[kind]
            for layer in layers:
                if not -1 <= layer < len(blocks):
                    raise MisconfiguredError(f"layer must be from 0 to {len(blocks) - 1}, got {layer}")
                if layer == -1 and kind != "hidden":
                    raise MisconfiguredError(f"there is no {kind} before the first block; leave layer -1 out")
                module = _part(blocks[max(layer, 0)], path, config.model_type)
                take = self._take(kind, layer, config.num_attention_heads, reduce)
                self._seats.append((kind, module, side == "before" or layer == -1, take))

    @contextmanager
    def passing(self) -> Iterator[Seen]:
        """What `reduce(kind, layer, tensor)` returned, by kind and layer, one value a pass; None is not kept.

        Hooks are gone and the model's attention is as it was afterwards, also after an exception. One thread
        at a time: who runs the model meanwhile is observed too.
        """
        self._seen = seen = Seen()
        with ExitStack() as stack:
            rows = "rows" in self._want and "attention" not in self._want
            aside = rows and stack.enter_context(beside(self._model))
            if not aside and {"attention", "rows"} & self._want:
                stack.enter_context(eager(self._model))
            for kind, module, before, take in self._seats:
                if kind == "rows" and aside:
                    stack.enter_context(listening(module, _second(take)))
                elif before:
                    stack.callback(module.register_forward_pre_hook(_inputs_to(take)).remove)
                else:
                    stack.callback(module.register_forward_hook(_output_to(take)).remove)
            yield seen

    def _take(self, kind: Kind, layer: int, heads: int, reduce: Reduce) -> Callable[[Any], None]:
        def take(value: Any) -> None:
            if kind in ("attention", "rows"):
                value = _probabilities(value, heads)
            elif isinstance(value, tuple):
                value = value[0]
            if kind == "heads":
                value = value.unflatten(-1, (heads, -1))
            kept = reduce(kind, layer, value)
            if kept is not None:
                self._seen.setdefault((kind, layer), []).append(kept)

        return take


def observing(
    model: Any, layers: Iterable[int], want: Iterable[Kind], reduce: Reduce
) -> AbstractContextManager[Seen]:
    """An observer's `passing`, of the same layers of each kind."""
    layers = list(layers)
    return Observer(model, dict.fromkeys(want, layers), reduce).passing()


def _inputs_to(take: Callable[[Any], None]) -> Callable[[Any, Any], None]:
    return lambda _module, inputs: take(inputs[0])


def _output_to(take: Callable[[Any], None]) -> Callable[[Any, Any, Any], None]:
    return lambda _module, _inputs, output: take(output)


def _second(take: Callable[[Any], None]) -> Callable[[Any], None]:
    """Given probabilities alone, as an attention module returns them beside its output."""
    return lambda probabilities: take((None, probabilities))


def _probabilities(output: Any, heads: int) -> Any:
    found = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    if found is None or found.ndim != 4 or found.shape[1] != heads:
        raise NotYetError("the model's attention gave no probabilities of its heads; nothing is observed")
    return found


def _part(block: Any, path: str, kind: str) -> Any:
    try:
        return block.get_submodule(path)
    except AttributeError:
        raise NotYetError(f"a {kind!r} model has no {path} of its own in this layer to observe") from None


@contextmanager
def eager(model: Any) -> Iterator[None]:
    """The model under the attention that computes its probabilities, and as it was afterwards."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
