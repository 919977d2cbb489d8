"""The command `generate`: a reply to one prompt.

Knows how a reply is asked for and shown; nothing of how tokens are chosen.
"""

import json
import sys
from collections.abc import Iterable

import click
import mlx.core as mx
from mlx_lm.models.cache import QuantizedKVCache, load_prompt_cache

from ..engine.generate import BudgetResponse, statistics, stream_generate
from ..engine.prompts import encode_chat
from ..engine.settings import check_budget
from ..engine.thinking import ThinkingMarkers, find_markers, split_reply
from ..models.loading import load
from .options import (
    BUDGET_OPTIONS,
    HIDE_THINKING_OPTION,
    KV_OPTIONS,
    LOADING,
    MAX_KV_SIZE_OPTION,
    MODEL_OPTIONS,
    PREFILL_OPTION,
    PROMPT_OPTIONS,
    REPLY_OPTIONS,
    TEMPLATE,
    VERBOSE_OPTION,
    check_options,
    model_or_demo,
    pick,
    read_prompt,
    settle_budget,
)
from .terminal import ReplyPrinter


@click.command()
@MODEL_OPTIONS
@click.option("--prompt", "-p", required=True, help="The question; - reads stdin.")
@BUDGET_OPTIONS
@HIDE_THINKING_OPTION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@VERBOSE_OPTION
@REPLY_OPTIONS
@PROMPT_OPTIONS
@click.option("--prefill-response", help="How the reply shall begin.")
@click.option(
    "--extra-eos-token", multiple=True, help="Another token that ends the reply."
)
@MAX_KV_SIZE_OPTION
@KV_OPTIONS
@PREFILL_OPTION
@click.option(
    "--prompt-cache-file",
    help="KV cache saved by `mlx_lm.cache_prompt`, to go on from.",
)
@click.option("--draft-model", help="Speculative decoding; not with a budget.")
@click.option(
    "--num-draft-tokens",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Tokens to draft at a time.",
)
def generate(**options):
    """Answer a prompt, thinking for about so many tokens."""
    run_generate(**settle_budget(options))


def run_generate(model: str | None, prompt: str, **options) -> None:
    """Generates one reply and shows it.

    Args:
        model (str, optional): Folder or Hub name; None for the built-in model.
        prompt (str): The question, or "-" for standard input.
        options: The command's other options, by the names of `stream_generate` and
            `load` where they have one.
    """
    _check_generate(model, options)
    model = model_or_demo(model)
    text = read_prompt(prompt)
    hide_thinking, as_json, verbose, seed, extra_eos, draft_model, cache_file = pick(
        options,
        "hide_thinking",
        "as_json",
        "verbose",
        "seed",
        "extra_eos_token",
        "draft_model",
        "prompt_cache_file",
    ).values()
    template = pick(options, *TEMPLATE, "prefill_response")
    loading = pick(options, *LOADING)
    if cache_file is not None:
        options["prompt_cache"], loading["tokenizer_config"] = _load_cache(
            cache_file, model, options
        )
    loaded, tokenizer, predictor = load(model, **loading)
    for token in extra_eos:
        if not token.isdigit() and token not in tokenizer.get_vocab():
            raise ValueError(f"--extra-eos-token {token!r} is no token of the model.")
        tokenizer.add_eos_token(token)
    if draft_model is None:
        del options["num_draft_tokens"]
    else:
        options["draft_model"], drafts, _ = load(draft_model, predictor=False)
        if drafts.vocab_size != tokenizer.vocab_size:
            raise ValueError(f"The tokenizer of {draft_model} is not that of {model}.")
        del options["max_kv_size"]
    if seed is not None:
        mx.random.seed(seed)
    ids = encode_chat(tokenizer, text, suffix_only=cache_file is not None, **template)
    responses = stream_generate(
        loaded,
        tokenizer,
        ids,
        predictor=predictor,
        xtc_special_tokens=[*tokenizer.encode("\n"), *tokenizer.eos_token_ids],
        **options,
    )
    if as_json:
        markers = None
        if tokenizer.has_thinking or options["thinking_end"] is not None:
            markers = find_markers(
                tokenizer, options["thinking_start"], options["thinking_end"]
            )
        _print_json(responses, model, markers)
    else:
        _print_live(responses, hide_thinking, verbose)


def _check_generate(model: str | None, options: dict) -> None:
    check_options(model, options)
    if options["kv_bits"] is not None and options["max_kv_size"] is not None:
        raise ValueError(
            "mlx-lm cannot quantise a KV cache of limited size: leave out --kv-bits or "
            "--max-kv-size."
        )
    has_budget = check_budget(options["thinking_budget"]) is not None
    if options["draft_model"] is not None and has_budget:
        raise ValueError(
            "Speculative decoding (--draft-model) cannot be combined with a thinking "
            "budget: leave out one of them."
        )


def _load_cache(file: str, model: str, options: dict) -> tuple[list, dict]:
    try:
        cache, metadata = load_prompt_cache(file, return_metadata=True)
        made_for, tokenizer_config = metadata["model"], metadata["tokenizer_config"]
        tokenizer_config = json.loads(tokenizer_config)
    except Exception:  # whatever a file that is no prompt cache makes it raise
        raise ValueError(
            f"{file} is not a prompt cache. Make one with `mlx_lm.cache_prompt`."
        ) from None
    if made_for != model:
        raise ValueError(f"{file} was made with the model {made_for}, not {model}.")
    if isinstance(cache[0], QuantizedKVCache):
        for option, saved in (
            ("kv_bits", cache[0].bits),
            ("kv_group_size", cache[0].group_size),
        ):
            if options[option] not in (None, saved):
                raise ValueError(
                    f"--{option.replace('_', '-')} is {options[option]}, but {file} "
                    f"was saved with {saved}."
                )
    return cache, tokenizer_config


def _print_live(
    responses: Iterable[BudgetResponse], hide_thinking: bool, verbose: bool
) -> None:
    printer = ReplyPrinter(sys.stdout, sys.stderr, hide_thinking)
    last = None
    try:
        for last in responses:
            printer.update(last)
    finally:
        if last is not None:
            printer.end()
            if verbose:
                click.echo("=" * 10 + "\n" + statistics(last), err=True)


def _print_json(
    responses: Iterable[BudgetResponse], model: str, markers: ThinkingMarkers | None
) -> None:
    runs: list[tuple[bool, str]] = []
    last, interrupted = None, False
    try:
        for last in responses:
            runs.append((last.is_thinking, last.text))
    except KeyboardInterrupt:
        interrupted = True
    if last is None:
        raise KeyboardInterrupt
    thinking, answer = split_reply(runs, markers)
    result = {
        "model": model,
        "text": "".join(text for _, text in runs),
        "thinking": thinking.strip(),
        "answer": answer.strip(),
        "thinking_budget": last.thinking_budget,
        "thinking_tokens": last.thinking_tokens,
        "closed_by": last.closed_by,
        "finish_reason": "interrupted" if interrupted else last.finish_reason,
        "prompt_tokens": last.prompt_tokens,
        "prompt_tps": last.prompt_tps,
        "generation_tokens": last.generation_tokens,
        "generation_tps": last.generation_tps,
        "peak_memory": last.peak_memory,
    }
    click.echo(json.dumps(result, ensure_ascii=False, indent=2))
    if interrupted:
        raise KeyboardInterrupt
