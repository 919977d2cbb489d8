"""Looks into a model: what it is, and whether a budget can be put on it.

Knows configurations, headers, tokenizers and chat templates, and loads no weights;
nothing of how facts are told.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_reduce
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer

from .. import demo
from ..engine.context import UNKNOWN_LENGTH, context_length
from ..engine.markers import MarkerFinder, ThinkingMarkers, markers_of
from ..engine.priors import LearnedPrior
from ..engine.prompts import encode_chat
from ..engine.recorder import HiddenStateRecorder
from ..engine.settings import ModelSource, ThinkingBudget
from ..engine.template import template_facts
from ..engine.thinking import ThinkingTracker
from ..files import hub
from ..method.predictor import Predictor
from .base_model import check_trusted, find_classes, make_empty, one_line
from .facts import (
    CACHED_TOKENS,
    MarkerFacts,
    ModelFacts,
    PredictorFacts,
    Template,
)
from .fetching import check_adapter, check_vocabulary
from .lookup import Config, Found, look_up, sizes_of
from .predictor_source import PredictorSource, find_predictor
from .published import PUBLISHED, fitting

# Of two prompts, by which the memory of a KV cache is measured.
_TRACED_TOKENS = (256, 512)
_QUESTION, _EARLIER = "How many primes are below 100?", "An earlier thought."


def inspect_model(
    source: ModelSource,
    thinking: ThinkingBudget,
    told: Callable[[str], None] = lambda _: None,
) -> ModelFacts:
    """What a model is, of its small files alone.

    Of a model on the Hub configuration and tokenizer are downloaded, and no weights.

    Args:
        source (ModelSource): The model, and a predictor if one is named.
        thinking (ThinkingBudget): Its markers, if not the tokenizer's own.
        told (Callable): Called with a line before anything is downloaded.
    """
    facts = ModelFacts(source.model)
    with _noted(facts):
        found = _find(source, facts, told)
        config = found.read_config()
        _describe(facts, found, config)
        with _noted(facts):
            _weigh(facts, found)
        if facts.is_reference:
            facts.problems.append(
                f"{source.model} is a Budget Guidance checkpoint that was not "
                f"converted yet: run `mlx-budget convert --hf-path {source.model}`, or "
                f"give its predictor to a build of its base model with --predictor "
                f"{source.model}."
            )
            return facts
        model = None
        with _noted(facts):
            check_adapter(source.adapter_path)
        with _noted(facts):
            check_trusted(source.model, config, source.trust_remote_code)
            model = _empty_model(found, config, source)
        if model is not None:
            _trace(facts, model)
        _read_predictor(facts, source, found)
        with _noted(facts):
            tokenizer = _tokenizer(found, config, source)
            _read_tokenizer(facts, tokenizer, thinking, model)
            _read_prior(facts, source, tokenizer, thinking)
    return facts


@contextmanager
def _noted(facts: ModelFacts) -> Iterator[None]:
    """Notes what is wrong and goes on."""
    try:
        yield
    except (ValueError, OSError) as e:
        if (line := str(e)) not in facts.problems:
            facts.problems.append(line)


def _find(source: ModelSource, facts: ModelFacts, told: Callable[[str], None]) -> Found:
    is_local = source.model == demo.NAME or hub.is_local(source.model)
    if not is_local and hub.at_hand(source.model, source.revision) is None:
        told(
            f"Asking the Hub for the configuration and the tokenizer of "
            f"{source.model}, not for its weights."
        )
    found = look_up(source.model, source.revision)
    facts.place = "folder" if is_local else "Hub"
    if source.model == demo.NAME:
        facts.place = "built in"
    facts.commit = found.commit
    return found


def _describe(facts: ModelFacts, found: Found, config: Config) -> None:
    facts.config = config
    facts.model_type = str(config["model_type"])
    quantization = config.get("quantization") or config.get("quantization_config")
    if isinstance(quantization, dict):
        kept = ("bits", "group_size", "mode", "quant_method")
        facts.quantization = {k: quantization[k] for k in kept if k in quantization}
    facts.width, facts.layers, facts.vocab_size = sizes_of(config)
    facts.published = fitting(facts.name, found.folder)


def _weigh(facts: ModelFacts, found: Found) -> None:
    """Sizes of the weights, and whether they are those of a reference checkpoint."""
    shards = found.shards
    facts.weight_files = len(shards)
    facts.is_reference = bool(found.predictor_files)
    facts.is_here = found.is_here
    facts.missing_bytes = found.bytes_missing
    here = (found.folder / name for name in shards)
    sizes = [file.stat().st_size for file in here if file.exists()]
    facts.weight_bytes = facts.missing_bytes + sum(sizes)
    if facts.is_here:
        for name in shards:
            found.header(name)  # which names a file that is damaged


def _empty_model(found: Found, config: Config, source: ModelSource) -> nn.Module:
    found.fetch_small()
    classes = find_classes(found.folder, source.model, config, source.trust_remote_code)
    return make_empty(found.folder, source.model, classes)


def _trace(facts: ModelFacts, model: nn.Module) -> None:
    """What a forward pass tells, of which nothing is computed."""
    try:
        recorder = HiddenStateRecorder.acquire(model)
    except ValueError as e:
        facts.records_states = False
        facts.problems.append(str(e))
        return
    try:
        caches = [make_prompt_cache(model) for _ in _TRACED_TOKENS]
        for cache, tokens in zip(caches, _TRACED_TOKENS, strict=True):
            model(mx.zeros((1, tokens), dtype=mx.int32), cache=cache)
        facts.cache_bytes = _cache_bytes(*caches)
        logits = model(mx.array([[0]]), cache=make_prompt_cache(model))
        facts.records_states = recorder.last is not None
        if recorder.last is not None:
            facts.width, facts.layers = recorder.last.sizes()
        facts.vocab_size = logits.shape[-1]
    except Exception:  # whatever a model that wants more than token ids raises
        pass
    finally:
        recorder.release()


def _cache_bytes(short: list[Any], long: list[Any]) -> int:
    """Bytes of a cache of `CACHED_TOKENS` tokens in 16 bits, from two shorter ones.

    What grows with the tokens goes on growing, a window up to its size.
    """
    total = 0
    few, many = _TRACED_TOKENS
    for one, other in zip(short, long, strict=True):
        size = _numbers(one.state)
        growth = (_numbers(other.state) - size) // (many - few)
        most = getattr(one, "max_size", None)
        tokens = min(CACHED_TOKENS, most) if isinstance(most, int) else CACHED_TOKENS
        total += 2 * (size + growth * max(tokens - few, 0))
    return total


def _numbers(arrays: Any) -> int:
    """How many numbers a tree of arrays holds."""
    return int(
        tree_reduce(
            lambda n, leaf: n + leaf.size if isinstance(leaf, mx.array) else n,
            arrays,
            0,
        )
    )


def _read_predictor(facts: ModelFacts, source: ModelSource, found: Found) -> None:
    """The predictor that is named, or beside the model, or kept and fitting."""
    if source.predictor is False:
        return
    name, beside = source.predictor, found.has_predictor
    if name is None and not beside:
        return
    shown = facts.name if name is None else str(name)
    try:
        asked = PredictorSource(found) if name is None else find_predictor(str(name))
        asked.check_sizes(sizes_of(facts.config))
        if not asked.is_here:
            known = {each.name: each.nbytes for each in PUBLISHED}
            nbytes = known.get(shown, 0)
            facts.predictor = PredictorFacts(shown, kind="encoder", bytes=nbytes)
            return
        predictor = asked.load()
        _check_fits(predictor, facts)
        facts.predictor = _facts_of(shown, predictor)
    except (ValueError, OSError) as e:
        facts.predictor = PredictorFacts(shown, problem=str(e))
        facts.problems.append(str(e))


def _check_fits(predictor: Predictor, facts: ModelFacts) -> None:
    width, layers, vocabulary = facts.width, facts.layers, facts.vocab_size
    if not predictor.reads_states:
        if vocabulary is not None:
            predictor.check_vocabulary(vocabulary)
    elif width is not None and layers is not None and vocabulary is not None:
        predictor.check_sizes(width, layers, vocabulary)


def _facts_of(name: str, predictor: Predictor) -> PredictorFacts:
    kinds = {"TablePredictor": "table", "LinearPredictor": "linear"}
    parameters = getattr(predictor, "parameters", None)
    arrays = parameters() if callable(parameters) else {}
    return PredictorFacts(
        name,
        kind=kinds.get(type(predictor).__name__, "encoder"),
        base_model=predictor.base_model,
        knows_lengths=predictor.knows_lengths,
        bytes=int(
            tree_reduce(
                lambda n, leaf: n + leaf.nbytes if isinstance(leaf, mx.array) else n,
                arrays,
                0,
            )
        ),
    )


def _tokenizer(found: Found, config: Config, source: ModelSource) -> TokenizerWrapper:
    found.fetch_small()
    with one_line(f"{found.name} cannot be loaded"), hub.quiet("transformers"):
        tokenizer = load_tokenizer(
            found.folder,
            {"trust_remote_code": source.trust_remote_code},
            eos_token_ids=config.get("eos_token_id"),
        )
        check_vocabulary(tokenizer)
    return tokenizer


def _read_tokenizer(
    facts: ModelFacts,
    tokenizer: TokenizerWrapper,
    thinking: ThinkingBudget,
    model: nn.Module | None,
) -> None:
    length = context_length(model or nn.Module(), tokenizer)
    facts.context = None if length == UNKNOWN_LENGTH else length
    markers = markers_of(tokenizer, thinking)
    if markers is None:
        return
    is_own = bool(tokenizer.has_tool_calling)
    tools = tuple(tool.start for tool in markers.tool_formats) if is_own else ()
    finders = (MarkerFinder(tokenizer, m) for m in (markers.start, markers.end) if m)
    facts.markers = MarkerFacts(
        markers.start, markers.end, all(f.is_token for f in finders), tools
    )
    if tokenizer.has_chat_template:
        facts.template = _read_template(tokenizer, markers)


def _read_prior(
    facts: ModelFacts,
    source: ModelSource,
    tokenizer: TokenizerWrapper,
    thinking: ThinkingBudget,
) -> None:
    markers = markers_of(tokenizer, thinking)
    if markers is not None:
        name = hub.model_name(source.model, source.adapter_path, source.revision)
        counts = LearnedPrior(name, tokenizer, markers).counts()
        facts.prior_lines = int(counts.number)


def _read_template(tokenizer: TokenizerWrapper, markers: ThinkingMarkers) -> Template:
    known = template_facts(tokenizer, markers)
    on = known.switch_on or {}
    ids = encode_chat(tokenizer, _QUESTION, chat_template_config=on)
    return Template(
        opens_thinking=ThinkingTracker(tokenizer, markers, ids).thinking,
        leaves_out_by=known.switch,
        lets_think_by=known.switch_on,
        drops_earlier_thinking=_drops_earlier(tokenizer, markers),
        takes_system_prompt=_takes_system_prompt(tokenizer),
    )


def _drops_earlier(
    tokenizer: TokenizerWrapper, markers: ThinkingMarkers
) -> bool | None:
    thought = f"{markers.start}\n{_EARLIER}\n{markers.end}\n\n"
    chat = [
        {"role": "user", "content": _QUESTION},
        {"role": "assistant", "content": f"{thought}There are 25."},
        {"role": "user", "content": "And below 10?"},
    ]
    text = _rendered(tokenizer, chat)
    return (
        None if text is None or "There are 25." not in text else (_EARLIER not in text)
    )


def _takes_system_prompt(tokenizer: TokenizerWrapper) -> bool:
    chat = [
        {"role": "system", "content": _EARLIER},
        {"role": "user", "content": _QUESTION},
    ]
    return _EARLIER in (_rendered(tokenizer, chat) or "")


def _rendered(tokenizer: TokenizerWrapper, chat: list[dict[str, str]]) -> str | None:
    try:
        return str(
            tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=True
            )
        )
    except Exception:  # templates raise what their authors like
        return None
