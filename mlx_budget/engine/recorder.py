"""Records the hidden states of any mlx-lm model while it generates.

Knows the shape of mlx-lm's models (a backbone that owns the list of decoder layers);
nothing of predictors, budgets, requests or tokens.

mlx modules have no forward hooks. A recorder swaps the class of the model, its
backbone, its layers and the norms around them for subclasses that note what passes and
delegate. Parameters, their names, adapters and quantisation stay as they are; when the
last lease on the recorder ends, the classes are put back and the model is as it was.

Dimensions: B batch, S sequence, N decoder layers, D model width, V vocabulary.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..ranks import current, mirrored
from .stages import Stages, stages_of

_RECORDER = "_budget_recorder"
_leasing = threading.RLock()


def active_recorder(model: nn.Module) -> "HiddenStateRecorder | None":
    """The recorder attached to ``model``, or None while nobody holds a lease."""
    return getattr(type(model), _RECORDER, None)


def find_backbone(model: nn.Module) -> nn.Module:
    """The module that owns the list of decoder layers of an mlx-lm model.

    Raises:
        ValueError: If ``model`` has no ``layers``, or no module that owns them.
    """
    layers = getattr(model, "layers", None)
    if not layers:
        raise ValueError(
            f"{type(model).__module__} has no list of decoder layers: its hidden "
            "states cannot be recorded, so a predictor cannot be used with this model."
        )
    for _, module in model.named_modules():
        for child in module.children().values():
            # Some models leave layers out of `layers`, or store them by block.
            if isinstance(child, list) and any(c is layers[0] for c in _flat(child)):
                return module
    raise ValueError(
        f"No module of {type(model).__module__} owns its decoder layers: its hidden "
        "states cannot be recorded, so a predictor cannot be used with this model."
    )


class ForwardPass:
    """What one forward pass over a single token of each row was given and computed.

    Passes over several tokens at once (prefill) keep nothing: a position that is not
    copied out keeps the whole chunk's activations alive.

    Attributes:
        inputs: The tokens that were read, shape (B, 1).
    """

    def __init__(self, inputs: mx.array, layers: int, stages: Stages | None = None):
        self.inputs = inputs
        self._states: list[mx.array | None] = [None] * (layers + 1)
        self._stages = stages
        self._gathered: mx.array | None = None

    @property
    def rows(self) -> int:
        """B, the number of rows."""
        return self.inputs.shape[0]

    def note(self, index: int, state: Any) -> None:
        """Keeps the input of layer ``index``, or with N the output of the final norm.

        Args:
            index (int): 0 to N. Inputs of layers come before the final norm's output.
            state: What the model passes on; anything but an array counts as unseen.
        """
        if index >= len(self._states):
            return  # another thread began to want states in the middle of this pass
        # Not a copy, but safe from a model's ``h += ...``.
        self._states[index] = mx.array(state) if isinstance(state, mx.array) else None
        if index < len(self._states) - 1:
            self._states[-1] = None  # the final norm comes after the last layer

    def note_backbone(self, state: Any) -> None:
        """Keeps the backbone's output where no norm gave the final state.

        The model may be normed by a function, or have other norms besides.
        """
        if not self._is_state(self._states[-1]):
            self.note(len(self._states) - 1, state)

    def sizes(self) -> tuple[int, int]:
        """D, the width of the hidden states, and N, the number of layers."""
        layers = len(self._states) - 1
        if self._stages is not None:
            layers = self._stages.layers
        return self._seen()[-1].shape[-1], layers

    def states(self, rows: Sequence[int]) -> mx.array:
        """The hidden states of some rows, in Hugging Face's order.

        Of a model that is spread over ranks these are gathered, of all rows at once:
        every rank has to ask for them, on the stream of the pass.

        Returns:
            mx.array: ``[h_0; ...; h_N]``, shape (len(rows), N + 1, D): the input of
            each of the N layers and the output of the final norm.

        Raises:
            ValueError: If the model does not pass them on as (B, 1, D) arrays.
        """
        return self._whole()[mx.array(list(rows))]

    @property
    def gathers_much(self) -> bool:
        """Whether `states` would move so much that `projected` is the better way."""
        return self._stages is not None and self._stages.are_many(self._seen())

    def projected(
        self, rows: Sequence[int], project: Callable[[mx.array, int], mx.array]
    ) -> mx.array:
        """What a map makes of the hidden states of some rows, layer by layer.

        They are mapped on the ranks that have them, and then gathered, as in `states`.

        Args:
            rows (Sequence[int]): As in `states`.
            project (Callable): From (B, n, D), and the index of the first of these n
                layers, to (B, n, P).

        Returns:
            mx.array: Shape (len(rows), N + 1, P).

        Raises:
            ValueError: As `states`, or if all layers are here.
        """
        if self._stages is None:
            raise ValueError("Nothing is to be gathered: all layers are here.")
        *inputs, final = self._seen()
        gathered = self._stages.gather(
            project(mx.concatenate(inputs, axis=1), self._stages.first),
            project(final, self._stages.layers),
        )
        return gathered[mx.array(list(rows))]

    def _whole(self) -> mx.array:
        if self._stages is None:
            return mx.concatenate(self._seen(), axis=1)
        if self._gathered is None:
            *inputs, final = self._seen()
            h = mx.concatenate(inputs, axis=1)
            self._gathered = self._stages.gather(h, final)
        return self._gathered

    def _seen(self) -> list[mx.array]:
        states: list[mx.array] = []
        for i, h in enumerate(self._states):
            if h is None or not self._is_state(h):
                last = len(self._states) - 1
                name = f"layer {i}" if i < last else "the final norm"
                raise ValueError(
                    f"The hidden state at {name} was not seen in the last forward "
                    "pass: a predictor cannot be used with this model architecture."
                )
            states.append(h)
        return states

    def _is_state(self, h: mx.array | None) -> bool:
        return h is not None and h.ndim == 3 and h.shape[:2] == (self.rows, 1)


class _ChunkPass(ForwardPass):
    """A pass over a chunk of one sequence, of which some positions are kept as rows."""

    def __init__(self, positions: mx.array, layers: int, stages: Stages | None = None):
        super().__init__(positions[:, None], layers, stages)
        self._positions = positions

    def note(self, index: int, state: Any) -> None:
        if isinstance(state, mx.array) and state.ndim == 3:
            state = state[0, self._positions][:, None]
        super().note(index, state)


class HiddenStateRecorder:
    """The hidden states of the last one-token forward pass of one model.

    One recorder serves all the requests that run on a model at a time; each holds a
    lease (`acquire`, `release`). Threads do not see one another's forward passes.
    """

    def __init__(self, model: nn.Module):
        self._leases = 0
        self._layers = 0
        self._stages = stages_of(model)
        self._passes = threading.local()
        self._modules: list[tuple[nn.Module, type]] = []
        self._swap(model, before=self._begin)
        setattr(type(model), _RECORDER, self)

    @classmethod
    def acquire(cls, model: nn.Module, states: bool = True) -> "HiddenStateRecorder":
        """The model's recorder, attached first if there is none; adds a lease.

        Args:
            model (nn.Module): An mlx-lm model.
            states (bool): Whether hidden states are wanted; if not, forward passes and
                their inputs are followed, and the layers are left alone.

        Raises:
            ValueError: If the model's layers cannot be found.
        """
        with _leasing:
            recorder = active_recorder(model) or cls(model)
            recorder._leases += 1
            if active_recorder(model) is not recorder:
                # The last lease ended just now, with a sampler that became garbage.
                recorder = cls(model)
                recorder._leases += 1
            if states:
                try:
                    recorder._watch_states(model)
                except ValueError:
                    recorder.release()
                    raise
            return recorder

    def release(self) -> None:
        """Ends one lease; with the last one the model is as it was before."""
        with _leasing:
            self._leases -= 1
            if self._leases == 0:
                for module, original in self._modules:
                    module.__class__ = original
                # The classes made for the recorder are cyclic garbage now: it must not
                # keep the model's weights until they are collected.
                self._modules = []
                self._passes = threading.local()

    @property
    def last(self) -> ForwardPass | None:
        """This thread's last forward pass, if it was over one token of each row."""
        return getattr(self._passes, "last", None)

    def run_chunk(
        self, model: nn.Module, tokens: mx.array, cache: list, positions: mx.array
    ) -> tuple[mx.array, mx.array]:
        """Runs the model over a chunk of one sequence and records some positions.

        Args:
            model (nn.Module): The model that it is attached to.
            tokens (mx.array): The chunk, shape (S,).
            cache (list): The model's cache, which holds what came before.
            positions (mx.array): Places in the chunk, shape (n,), n >= 1.

        Returns:
            tuple[mx.array, mx.array]: The hidden states, shape (n, N + 1, D), and the
            logits of the whole chunk, shape (S, V), which cost nothing until used.
        """
        chunk = _ChunkPass(positions, self._layers, self._stages)
        self._passes.chunk = chunk
        try:
            logits = model(tokens[None], cache=cache)
            return chunk.states(range(positions.size)), logits[0]
        finally:
            self._passes.chunk = self._passes.last = None

    def _watch_states(self, model: nn.Module) -> None:
        if self._layers:
            return
        backbone = find_backbone(model)
        self._layers = len(model.layers)
        for i, layer in enumerate(model.layers):
            self._swap(layer, before=functools.partial(self._note_layer, i))
        for norm in _norms_outside_layers(model):
            self._swap(norm, after=self._note_norm)
        if backbone is not model:
            self._swap(backbone, after=self._note_backbone)

    def _swap(self, module: nn.Module, **notes: Callable) -> None:
        self._modules.append((module, type(module)))
        module.__class__ = _recording_class(type(module), **notes)

    def _begin(self, args: tuple, kwargs: dict) -> None:
        chunk = getattr(self._passes, "chunk", None)
        inputs = _first_array(args, kwargs)
        if chunk is None and inputs is not None and inputs.shape[1:2] == (1,):
            chunk = ForwardPass(inputs, self._layers, self._stages)
        self._passes.last = chunk

    # These run for every layer of every step; what they keep is checked when used.
    def _note_layer(self, index: int, args: tuple, kwargs: dict) -> None:
        if (last := self.last) is not None:
            last.note(index, _first_array(args, kwargs))

    def _note_norm(self, out: Any) -> None:
        if (last := self.last) is not None:
            last.note(self._layers, out)

    def _note_backbone(self, out: Any) -> None:
        if (last := self.last) is not None:
            last.note_backbone(out)


@mirrored()
def hidden_states_at(
    model: nn.Module,
    tokens: Sequence[int] | np.ndarray,
    positions: Sequence[int] | np.ndarray,
    step_size: int,
) -> Iterator[tuple[mx.array, mx.array]]:
    """Hidden states at some positions of a sequence, computed chunk by chunk.

    Memory is that of one chunk and of the KV cache.

    Args:
        model (nn.Module): An mlx-lm model.
        tokens (sequence or array): The sequence's tokens.
        positions (sequence or array): Where the states are wanted, in ascending order.
        step_size (int): Tokens in a chunk.

    Yields:
        tuple[mx.array, mx.array]: For each chunk with such positions, their states,
        evaluated, shape (n, N + 1, D), and the logits there, shape (n, V), not yet.

    Raises:
        ValueError: If the model's hidden states cannot be recorded.
    """
    ids, wanted = mx.array(np.array(tokens)), np.array(positions)
    cache = make_prompt_cache(model)
    recorder = HiddenStateRecorder.acquire(model)
    try:
        for start in range(0, int(wanted[-1]) + 1, step_size):
            chunk = ids[start : start + step_size]
            inside = (wanted >= start) & (wanted < start + step_size)
            if not inside.any():
                model(chunk[None], cache=cache)
                mx.eval([c.state for c in cache])
                continue
            here = mx.array(wanted[inside] - start)
            states, logits = recorder.run_chunk(model, chunk, cache, here)
            told = logits[here]
            mx.eval(states, [c.state for c in cache])
            if current() is not None:
                mx.eval(told)  # where other ranks have to take part in it
            yield states, told
    finally:
        recorder.release()


def _first_array(args: tuple, kwargs: dict) -> mx.array | None:
    if args and isinstance(args[0], mx.array):
        return args[0]
    values = (*args, *kwargs.values())
    return next((v for v in values if isinstance(v, mx.array)), None)


def _recording_class(
    original: type,
    before: Callable[[tuple, dict], None] | None = None,
    after: Callable[[Any], None] | None = None,
) -> type:
    call_original = original.__call__

    @functools.wraps(call_original)
    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            before(args, kwargs)
        out = call_original(self, *args, **kwargs)
        if after is not None:
            after(out)
        return out

    # For `inspect.getfullargspec` too, which does not look through `wraps`.
    call.__signature__ = inspect.signature(call_original)  # type: ignore[attr-defined]
    return type(
        original.__name__,
        (original,),
        {"__call__": call, "__module__": original.__module__},
    )


def _norms_outside_layers(model: nn.Module) -> list[nn.Module]:
    """The last of these to run is the final norm, whoever owns it."""
    inside = {id(module) for layer in model.layers for module in layer.modules()}
    return [
        module
        for module in model.modules()
        if "Norm" in type(module).__name__
        and not module.children()
        and id(module) not in inside
    ]


def _flat(layers: list) -> list:
    return [x for c in layers for x in (_flat(c) if isinstance(c, list) else [c])]
