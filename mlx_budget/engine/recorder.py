"""Records the hidden states of any mlx-lm model while it generates.

Knows the shape of mlx-lm's models (a backbone that owns the list of decoder layers) and
nothing of predictors, budgets or tokens.

mlx modules have no forward hooks. A recorder swaps the class of the model, its
backbone, its layers and the norms around them for subclasses that note what passes and
delegate. Parameters, their names, adapters and quantisation stay as they are; when the
last lease on the recorder ends, the classes are put back and the model is as it was.
"""

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

_RECORDER = "_budget_recorder"


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


class HiddenStateRecorder:
    """The hidden states of the last single-token forward pass of one model.

    One recorder serves all the requests that run on a model at a time. Each holds a
    lease (`acquire`, `release`) and, after each forward pass, claims its row of the
    batch (`next_row`) in the order in which mlx-lm calls the samplers.

    Attributes:
        inputs: The tokens of the last forward pass, shape (B, 1), or None.
        notes: What the requests want to keep until the next forward pass.

    Forward passes over several tokens at once (prefill) are not recorded, but for the
    positions that `hidden_states_at` asks for: a position that is not copied out keeps
    the whole chunk's activations alive.
    """

    def __init__(self, model: nn.Module):
        self._leases = 0
        self._rows = 0
        self._claimed = 0
        self._positions: mx.array | None = None
        self._layer_inputs: list[mx.array | None] = []
        self._final: mx.array | None = None
        self._members: list[weakref.ref] = []
        self.inputs: mx.array | None = None
        self.notes: list = []
        self._modules: list[tuple[nn.Module, type]] = []
        self._swap(model, before=self._begin)
        setattr(type(model), _RECORDER, self)

    def _watch_states(self, model: nn.Module) -> None:
        if self._layer_inputs:
            return
        backbone = find_backbone(model)
        self._layer_inputs = [None] * len(model.layers)
        for i, layer in enumerate(model.layers):
            self._swap(layer, before=functools.partial(self._record_layer, i))
        for norm in _norms_outside_layers(model):
            self._swap(norm, after=self._record_norm)
        if backbone is not model:
            self._swap(backbone, after=self._record_backbone)

    def _swap(self, module: nn.Module, **notes: Callable) -> None:
        self._modules.append((module, type(module)))
        module.__class__ = _recording_class(type(module), **notes)

    @classmethod
    def acquire(cls, model: nn.Module, states: bool = True) -> "HiddenStateRecorder":
        """The model's recorder, attached first if there is none; adds a lease.

        Args:
            model (nn.Module): An mlx-lm model.
            states (bool): Whether hidden states are wanted; if not, forward passes and
                their rows are followed, and the layers are left alone.

        Raises:
            ValueError: If the model's layers cannot be found.
        """
        recorder = active_recorder(model) or cls(model)
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
        self._leases -= 1
        if self._leases == 0:
            for module, original in self._modules:
                module.__class__ = original
            # The classes made for the recorder are cyclic garbage now: it must not
            # keep the model's weights until they are collected.
            self._modules = []
            self._layer_inputs, self._final, self.inputs = [], None, None
            self._members, self.notes = [], []

    def join(self, member: object) -> None:
        """Puts a request at the end of the order in which rows join a batch."""
        others = [r for r in self._members if r() not in (None, member)]
        self._members = [*others, weakref.ref(member)]

    def members(self) -> list:
        """The requests that have joined and are still there, in their order."""
        return [m for r in self._members if (m := r()) is not None]

    def next_row(self, rows: int) -> int:
        """Claims the next row of the last forward pass.

        Args:
            rows (int): Number of rows that the caller samples at once, always 1.

        Raises:
            ValueError: If no single-token forward pass came before.
        """
        if rows != 1 or self._claimed >= self._rows:
            raise ValueError(
                "The budget sampler was called without a one-token forward pass of its "
                "own model before it. Use one sampler per request; speculative "
                "decoding (draft_model) cannot be combined with a thinking budget."
            )
        self._claimed += 1
        return self._claimed - 1

    def sizes(self) -> tuple[int, int]:
        """D, the width of the hidden states, and N, the number of layers."""
        return self._seen()[0].shape[-1], len(self._layer_inputs)

    def states(self, rows: list[int]) -> mx.array:
        """The hidden states of some rows, in Hugging Face's order.

        Returns:
            mx.array: ``[h_0; ...; h_N]``, shape (len(rows), N + 1, D): the input of
            each of the N layers and the output of the final norm.

        Raises:
            ValueError: If the model does not pass them on as (B, 1, D) arrays.
        """
        return mx.concatenate(self._seen(), axis=1)[mx.array(rows)]

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
        self._positions = positions
        try:
            logits = model(tokens[None], cache=cache)
            return mx.stack(self._seen(), axis=2)[0], logits[0]
        finally:
            self._positions, self._rows = None, 0

    def _seen(self) -> list[mx.array]:
        states = [*self._layer_inputs, self._final]
        for i, h in enumerate(states):
            if not self._is_state(h):
                name = f"layer {i}" if i < len(states) - 1 else "the final norm"
                raise ValueError(
                    f"The hidden state at {name} was not seen in the last forward "
                    "pass: a predictor cannot be used with this model architecture."
                )
        return states

    def _begin(self, args: tuple, kwargs: dict) -> None:
        claimed, self._claimed = self._claimed, 0
        if 0 < claimed < self._rows:
            raise ValueError(
                f"Only {claimed} of {self._rows} rows of the batch were sampled "
                "by budget samplers. Make one for every request of the batch "
                "(thinking_budget=None for those without a budget)."
            )
        self._layer_inputs = [None] * len(self._layer_inputs)
        self._final = None
        self.notes = []
        inputs = _first_array(args, kwargs)
        if self._positions is not None:
            self._rows, self.inputs = len(inputs), None
            return
        single = inputs is not None and inputs.shape[1:2] == (1,)
        self._rows = inputs.shape[0] if single else 0
        self.inputs = inputs if single else None

    # These run for every layer of every step; what they keep is checked when used.
    def _record_layer(self, index: int, args: tuple, kwargs: dict) -> None:
        if self._rows:
            self._layer_inputs[index] = self._kept(_first_array(args, kwargs))
            self._final = None  # the final norm comes after the last layer

    def _record_norm(self, out) -> None:
        if self._rows:
            self._final = self._kept(out)

    def _record_backbone(self, out) -> None:
        # The model may be normed by a function, or have other norms besides.
        if self._rows and not self._is_state(self._final):
            self._final = self._kept(out)

    def _kept(self, value) -> mx.array | None:
        if not isinstance(value, mx.array):
            return None
        if self._positions is not None and value.ndim == 3:
            return value[:, self._positions]
        return mx.array(value)  # not a copy, but safe from a model's ``h += ...``

    def _is_state(self, h: mx.array | None) -> bool:
        positions = 1 if self._positions is None else self._positions.size
        return h is not None and h.ndim == 3 and h.shape[:2] == (self._rows, positions)


def hidden_states_at(
    model: nn.Module, tokens: Sequence[int], positions: Sequence[int], step_size: int
) -> Iterator[tuple[mx.array, mx.array]]:
    """Hidden states at some positions of a sequence, computed chunk by chunk.

    Memory is that of one chunk and of the KV cache.

    Args:
        model (nn.Module): An mlx-lm model.
        tokens (sequence): The sequence's tokens.
        positions (sequence): Where the states are wanted, in ascending order.
        step_size (int): Tokens in a chunk.

    Yields:
        tuple[mx.array, mx.array]: For each chunk with such positions, their states,
        evaluated, shape (n, N + 1, D), and the logits there, shape (n, V), not yet.

    Raises:
        ValueError: If the model's hidden states cannot be recorded.
    """
    tokens, positions = mx.array(tokens), np.array(positions)
    cache = make_prompt_cache(model)
    recorder = HiddenStateRecorder.acquire(model)
    try:
        for start in range(0, int(positions[-1]) + 1, step_size):
            chunk = tokens[start : start + step_size]
            inside = (positions >= start) & (positions < start + step_size)
            if not inside.any():
                model(chunk[None], cache=cache)
                mx.eval([c.state for c in cache])
                continue
            here = mx.array(positions[inside] - start)
            states, logits = recorder.run_chunk(model, chunk, cache, here)
            mx.eval(states, [c.state for c in cache])
            yield states, logits[here]
    finally:
        recorder.release()


def _first_array(args: tuple, kwargs: dict) -> mx.array | None:
    if args and isinstance(args[0], mx.array):
        return args[0]
    values = (*args, *kwargs.values())
    return next((v for v in values if isinstance(v, mx.array)), None)


def _recording_class(
    original: type, before: Callable | None = None, after: Callable | None = None
) -> type:
    call_original = original.__call__

    @functools.wraps(call_original)
    def call_noting_inputs(self, *args, **kwargs):
        before(args, kwargs)
        return call_original(self, *args, **kwargs)

    @functools.wraps(call_original)
    def call_noting_output(self, *args, **kwargs):
        out = call_original(self, *args, **kwargs)
        after(out)
        return out

    call = call_noting_output if before is None else call_noting_inputs
    call.__signature__ = inspect.signature(call_original)
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
