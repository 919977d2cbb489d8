"""KV caches: whether one can be quantised, and how a conversation goes back in its own.

Knows mlx-lm's caches and its loop; nothing of chat templates, budgets or terminals.
"""

import copy
import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import (
    DEFAULT_QUANTIZED_KV_START,
    generate_step,
    maybe_quantize_kv_cache,
)
from mlx_lm.models.cache import (
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
    make_prompt_cache,
)

from .drafts import flat_caches
from .memory import wired
from .settings import check_kv_options

# Options of mlx-lm's loop that say how a prompt is read.
READING = ("prefill_step_size", "kv_bits", "kv_group_size", "quantized_kv_start")
# How many tokens a reply may be behind its cache: the loop runs a step ahead, and the
# beginning of a marker is held back.
_AHEAD = 64


def check_quantisable(
    model: nn.Module, options: Mapping[str, Any], tokens: float = math.inf
) -> None:
    """Checks, before anything is generated, that mlx-lm can quantise the KV cache.

    It begins to quantise when the cache holds ``quantized_kv_start`` tokens. Layers
    with a `RotatingKVCache` refuse that, so a model that has one is refused, however
    short its replies. State-space layers, and caches of other kinds, are left as they
    are. If the cache gets so long, the rest is tried as well: groups may not divide
    the heads, and some models' attention takes no quantised keys.

    Args:
        model (nn.Module): The model.
        options (Mapping): Of mlx-lm's loop: ``kv_bits``, ``kv_group_size``,
            ``quantized_kv_start``, ``max_kv_size``, ``prompt_cache``, ``draft_model``;
            others are ignored.
        tokens (float): How many will be read and generated at most.

    Raises:
        ValueError: Saying what cannot be quantised, and the way out.
    """
    kv_bits = options.get("kv_bits")
    check_kv_options(kv_bits, options.get("max_kv_size"))
    if kv_bits is None:
        return
    group_size = options.get("kv_group_size", 64)
    start = options.get("quantized_kv_start", DEFAULT_QUANTIZED_KV_START)
    cache: list[Any] = options.get("prompt_cache") or []
    models = [(model, cache)]
    if (draft_model := options.get("draft_model")) is not None:
        count = len(model.layers)
        models = [(model, cache[:count]), (draft_model, cache[count:])]
    for one, layers in models:
        layers = layers or make_prompt_cache(one)
        _check_kinds(layers, kv_bits, group_size)
        held = max(getattr(c, "offset", 0) for c in layers)
        if held + tokens >= start:
            _try_to_quantise(one, layers, kv_bits, group_size)


def _check_kinds(layers: list[Any], bits: int, group_size: int) -> None:
    refusing = []
    for layer in layers:
        try:
            if hasattr(layer, "to_quantized"):
                layer.to_quantized(group_size=group_size, bits=bits)
        except NotImplementedError:
            refusing.append(type(layer).__name__)
        except Exception:  # of the size of the groups
            continue
    if refusing:
        raise ValueError(
            f"mlx-lm cannot quantise the KV cache of this model: {len(refusing)} of "
            f"its {len(layers)} layers have a {refusing[0]}, for a sliding window or a "
            "limited size. Leave out --kv-bits (kv_bits in Python)."
        )


def _try_to_quantise(
    model: nn.Module, layers: list[Any], bits: int, group_size: int
) -> None:
    """Quantises the cache and goes on, as far as shapes and types.

    MLX finds errors in these while it notes down what to compute, and then nothing is
    computed. The copy shares the memory of the cache for as long.
    """
    layers = copy.deepcopy(layers)
    one, two = (mx.zeros((1, n), dtype=mx.uint32) for n in (1, 2))
    try:
        model(one, cache=layers)
    except Exception:  # not for want of quantisation: generation will say more
        return
    try:
        maybe_quantize_kv_cache(layers, 0, group_size, bits)
        model(one, cache=layers)
        model(two, cache=layers)
    except Exception as e:  # whatever a model's attention makes of quantised keys
        raise ValueError(
            f"The KV cache of this model cannot be quantised to {bits} bits in groups "
            f"of {group_size}: {' '.join(str(e).split())} Try another --kv-group-size "
            "(32, 64 or 128), or leave out --kv-bits (kv_group_size and kv_bits in "
            "Python)."
        ) from e


class ConversationCache:
    """A KV cache, the tokens it was given, and ways back into them.

    Full attention is cut to what the next prompt shares with it, and never copied. A
    state-space layer cannot be cut, nor a sliding window once it has overflowed: of
    these, `keep` makes copies where a later prompt may part from this one. At most two
    of each are kept beside the layer itself, each as large as its state or its window.
    A window that has not overflowed is cut as well, and copied only when it is about
    to overflow. Copies share memory with the layer until that goes on.

    Attributes:
        layers: mlx-lm's prompt cache.
        tokens: What was fed to it, as far as that is known; it may hold more.
        read_again: How many tokens the last cut gave up although the prompt has them.
        reason: Why, if it is any.
    """

    def __init__(self, model: nn.Module, max_kv_size: int | None = None):
        self._model = model
        self._max_kv_size = max_kv_size
        # The first tokens of such a cache stay, so that which of the others are seen
        # depends on how it was fed.
        self._limit = None if hasattr(model, "make_cache") else max_kv_size
        self.read_again = 0
        self.reason = ""
        self.clear()

    def clear(self) -> None:
        """Begins an empty cache."""
        self.layers = make_prompt_cache(self._model, self._max_kv_size)
        self.tokens: list[int] = []
        self._copies: dict[int, deque[tuple[int, Any]]] = {}
        self._lost: list[int] = []

    def give_up(self) -> None:
        """Begins an empty cache, because a layer may be in the middle of its work."""
        lost = self.tokens
        self.clear()
        self._lost = lost

    def cut_to(self, ids: list[int]) -> int:
        """Goes back to what the cache shares with a prompt, its last token aside.

        Args:
            ids (list): The prompt.

        Returns:
            int: Tokens that are in the cache now: the first ones of ``ids``, or none.
        """
        beginning = ids[:-1]
        held = self._held()
        shared = min(held, common_prefix(self.tokens, beginning))
        known, position = shared, 0
        if not self._fits(len(ids)):
            self.reason = f"the prompt does not fit into {self._limit} tokens of cache"
        elif self._lost:
            known = common_prefix(self._lost, beginning)
            self.reason = "the last turn was broken off"
        else:
            self.reason = "the cache of this model cannot be cut there"
            kept = {p for copies in self._copies.values() for p, _ in copies}
            candidates = sorted(p for p in {shared, *kept} if p <= shared)
            while candidates and not self._has_way_to(candidates[-1], held):
                candidates.pop()
            position = candidates[-1] if candidates else 0
        self.read_again = known - position
        if position:
            self._go_to(position, held)
            self.tokens = self.tokens[:position]
        else:
            self.clear()
        return position

    def needs_copies(self, length: int) -> bool:
        """Whether a layer cannot be cut once a prompt of so many tokens is read."""
        if not self._fits(length):
            return False  # it is read anew whenever it comes again
        return any(
            not _is_cuttable(c, length + _AHEAD) for c in flat_caches(self.layers)
        )

    def read(
        self, ids: list[int], progress: Callable[[int, int], None], **options: Any
    ) -> None:
        """Reads on in a prompt, as mlx-lm does.

        Args:
            ids (list): The prompt as far as it shall be read.
            progress (Callable): Called as mlx-lm's ``prompt_progress_callback`` is.
            options: Of mlx-lm's loop, those of `READING`.
        """
        begin = len(self.tokens)

        def note(done: int, total: int) -> None:
            self.tokens = ids[: begin + done]
            progress(done, total)

        with wired():
            # Without a token to generate it stops when the prompt is read.
            for _ in generate_step(
                mx.array(ids[begin:]),
                self._model,
                max_tokens=0,
                prompt_cache=self.layers,
                prompt_progress_callback=note,
                **options,
            ):
                pass

    def keep(self, length: int) -> None:
        """Copies what cannot be cut to here once a prompt of so many tokens is read."""
        for layer in flat_caches(self.layers):
            if not _is_cuttable(layer, length + _AHEAD):
                self._copy(layer, len(self.tokens))

    def keep_windows(self) -> None:
        """Copies the windows that are about to overflow; to be called at each token."""
        for layer in flat_caches(self.layers):
            if not isinstance(layer, RotatingKVCache):
                continue
            if layer.is_trimmable() and not _is_cuttable(layer, layer.offset + _AHEAD):
                latest = max((p for p, _ in self._copies_of(layer)), default=0)
                if latest + _AHEAD < layer.max_size:
                    self._copy(layer, layer.offset)

    def _fits(self, length: int) -> bool:
        return self._limit is None or length <= self._limit

    def _copies_of(self, layer: Any) -> deque[tuple[int, Any]]:
        return self._copies.setdefault(id(layer), deque(maxlen=2))

    def _copy(self, layer: Any, position: int) -> None:
        copies = self._copies_of(layer)
        if position not in (p for p, _ in copies):
            copies.append((position, copy.deepcopy(layer)))

    def _held(self) -> int:
        """Tokens in the cache by its own count; 0 if its layers have none in common."""
        # State-space layers have no offset, and layers that go unused none but 0.
        offsets = {getattr(c, "offset", 0) for c in flat_caches(self.layers)} - {0}
        if not offsets:
            return len(self.tokens)
        return offsets.pop() if len(offsets) == 1 else 0

    def _has_way_to(self, position: int, held: int) -> bool:
        ways = (self._way_to(position, held, c) for c in flat_caches(self.layers))
        return all(way is not None for way in ways)

    def _way_to(self, position: int, held: int, layer: Any) -> Any | None:
        """What holds so many tokens of a layer, or can be cut to them; None if lost."""
        if position == held or _is_cuttable(layer):
            return layer
        for p, kept in reversed(self._copies_of(layer)):
            if p == position or (p > position and _is_cuttable(kept)):
                return kept
        return None

    def _go_to(self, position: int, held: int) -> None:
        for layer in flat_caches(self.layers):
            way = self._way_to(position, held, layer)
            copies = self._copies_of(layer)
            rest = [(p, c) for p, c in copies if p <= position and c is not way]
            copies.clear()
            copies.extend(rest)
            if way is not layer:
                vars(layer).update(vars(way))
            if (excess := getattr(layer, "offset", 0) - position) > 0:
                layer.trim(excess)


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many tokens two lists begin with in common."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))


def _is_cuttable(layer: Any, held: int | None = None) -> bool:
    """Whether a layer can be cut exactly, as it is or when it holds so many tokens."""
    if isinstance(layer, RotatingKVCache):
        return (layer.offset if held is None else held) < layer.max_size
    # Of layers of other kinds, what is cut may still be seen.
    return isinstance(layer, KVCache | QuantizedKVCache)
