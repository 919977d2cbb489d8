"""What of `mlx_lm.server` we extend, and whether it still is where we extend it.

That module has no public interface, so each of these places is checked before the
server starts: a release of mlx-lm that moves one is told apart from one that works.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx_lm
from mlx_lm import server

# Each place, and the names of the parameters that we count on.
SEAMS: dict[str, tuple[str, ...]] = {
    "get_system_fingerprint": (),
    "stream_generate": ("model", "tokenizer", "prompt"),
    "sharded_load": ("repo", "pipeline_group", "tensor_group", "return_config"),
    "_make_sampler": ("args", "tokenizer"),
    "_make_logits_processors": ("args",),
    "ModelProvider.load_default": ("self",),
    "ModelProvider._load": ("self", "model_path", "adapter_path", "draft_model_path"),
    "ResponseGenerator.generate": (
        "self",
        "request",
        "generation_args",
        "progress_callback",
    ),
    "ResponseGenerator.stop_and_join": ("self",),
    "ResponseGenerator._generate": ("self",),
    "ResponseGenerator._next_request": ("self", "timeout"),
    "ResponseGenerator._share_object": ("self", "obj"),
    "ResponseGenerator._serve_single": ("self", "request", "stream"),
    "ResponseGenerator._make_state_machine": (
        "self",
        "model_key",
        "tokenizer",
        "stop_words",
    ),
    "ResponseGenerator._tokenize": ("self", "tokenizer", "request", "args"),
    "ResponseGenerator._is_batchable": ("self", "args"),
    "LRUPromptCache.fetch_nearest_cache": ("self", "model", "tokens"),
    "LRUPromptCache.insert_cache": (
        "self",
        "model",
        "tokens",
        "prompt_cache",
        "cache_type",
    ),
    "APIHandler.do_POST": ("self",),
    "APIHandler.do_GET": ("self",),
    "APIHandler._set_cors_headers": ("self",),
    "APIHandler._set_completion_headers": ("self", "status_code"),
    "APIHandler._set_stream_headers": ("self",),
    "APIHandler.handle_chat_completions": ("self",),
    "APIHandler.handle_text_completions": ("self",),
    "APIHandler.validate_model_parameters": ("self",),
    "APIHandler.handle_completion": ("self", "request", "stop_words"),
    "APIHandler.handle_models_request": ("self",),
    "APIHandler.handle_health_check": ("self",),
    "APIHandler.generate_response": ("self", "text", "finish_reason", "reasoning_text"),
    "APIHandler.completion_usage_response": ("self",),
}
# What the bodies of these must do for the places above to be reached.
CALLS = {
    "ResponseGenerator._generate": (
        "self._tokenize(",
        "_make_sampler(args",
        "self._next_request(",
        "self._share_object(uids_to_remove)",
        "in self._time_budget",
        "rqueue.put(e)",
        "self.prompt_cache.fetch_nearest_cache(",
        "self.prompt_cache.insert_cache(",
    ),
    "ResponseGenerator._serve_single": (
        "in stream_generate(",
        "self._tokenize(",
        "_make_sampler(args",
        "self.prompt_cache.fetch_nearest_cache(",
        "self.prompt_cache.insert_cache(",
    ),
    "APIHandler.handle_completion": (
        "self.response_generator.generate(",
        "self.generate_response(",
        "self.completion_usage_response(",
        "reasoning_text=",
        "self.max_tokens",
        # The bytes that `telling` knows.
        'f"data: {json.dumps(resp)}',
        '"data: [DONE]',
        'f": keepalive',
        '{"error": str(e)}',
    ),
    "APIHandler.do_POST": (
        "self.rfile.read(",
        "self.validate_model_parameters()",
        "self.handle_chat_completions",
        "self.handle_text_completions",
        "self.handle_completion(",
    ),
}


def check_seams() -> None:
    """Checks that `mlx_lm.server` still is what the server extends.

    Raises:
        ValueError: Naming the first place that has moved.
    """
    for name, parameters in SEAMS.items():
        found = inspect.signature(_find(name)).parameters
        if missing := [p for p in parameters if p not in found]:
            raise _moved(name, f"has no parameter {missing[0]}")
    for name, calls in CALLS.items():
        source = inspect.getsource(_find(name))
        if missing := [call for call in calls if call not in source]:
            raise _moved(name, f"no longer has {missing[0]!r}")


_samplers_made_by: list[Callable] = []


@contextmanager
def samplers_made_by(make: Callable) -> Iterator[None]:
    """Lets `mlx_lm.server` make its samplers with ``make(args, tokenizer)``.

    It may be entered again before it is left, with the same function.
    """
    place: Any = server
    if not _samplers_made_by:
        _samplers_made_by.append(place._make_sampler)
        place._make_sampler = make
    _samplers_made_by.append(make)
    try:
        yield
    finally:
        _samplers_made_by.pop()
        if len(_samplers_made_by) == 1:
            place._make_sampler = _samplers_made_by.pop()


@contextmanager
def replaced(name: str, value: Any) -> Iterator[None]:
    """Lets `mlx_lm.server` find something else under a name of its module."""
    place: Any = server
    former = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, former)


def _find(name: str) -> Callable:
    found: Any = server
    for part in name.split("."):
        found = getattr(found, part, None)
        if found is None:
            raise _moved(name, "is not there")
    return found


def _moved(name: str, what: str) -> ValueError:
    return ValueError(
        f"mlx-budget serve does not know the server of mlx-lm {mlx_lm.__version__}: "
        f"mlx_lm.server.{name} {what}. Install another mlx-lm (0.31.3 and 0.32.2 were "
        "tested) or a newer mlx-budget."
    )
