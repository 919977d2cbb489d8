"""What the commands `generate` and `estimate` do with their options.

Knows how prompts are read and results are shown; nothing of how options are parsed.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import click
import mlx.core as mx
from mlx_lm.models.cache import QuantizedKVCache, load_prompt_cache

from . import demo
from .cli.terminal import ReplyPrinter
from .engine.estimate import ThinkingEstimate, estimate
from .engine.generate import BudgetResponse, statistics, stream_generate
from .engine.prompts import encode_chat, read_prompts
from .engine.settings import (
    check_budget,
    check_enforceable,
    check_hard_stop,
    check_temperature,
)
from .engine.thinking import ThinkingMarkers, find_markers, split_reply
from .method.predictor import is_predictor_folder
from .models.loading import load

_LOADING = ("predictor", "adapter_path", "revision", "trust_remote_code")
_TEMPLATE = ("system_prompt", "ignore_chat_template", "chat_template_config")


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
    text = _read_prompt(prompt)
    hide_thinking, as_json, verbose, seed, extra_eos, draft_model, cache_file = _take(
        options,
        "hide_thinking",
        "as_json",
        "verbose",
        "seed",
        "extra_eos_token",
        "draft_model",
        "prompt_cache_file",
    ).values()
    template = _take(options, *_TEMPLATE, "prefill_response")
    loading = _take(options, *_LOADING)
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


def run_estimate(
    model: str | None, prompt: str | None, data, as_json: bool, **options
) -> None:
    """Predicts thinking lengths and shows them as a table or as JSON.

    Args:
        model (str, optional): Folder or Hub name; None for the built-in model.
        prompt (str, optional): The question, or "-" for standard input.
        data (Path, optional): A file of prompts, in its stead.
        as_json (bool): Whether to print JSON.
        options: The command's other options.
    """
    if (prompt is None) == (data is None):
        raise ValueError("Give one of --prompt and --data.")
    prompts = [_read_prompt(prompt)] if data is None else read_prompts(data)
    template = _take(options, *_TEMPLATE)
    model = model_or_demo(model)
    loaded, tokenizer, predictor = load(model, **_take(options, *_LOADING))
    estimates = []
    for text in prompts:
        ids = encode_chat(tokenizer, text, **template)
        title = text if isinstance(text, str) else text[-1]["content"]
        found = estimate(loaded, tokenizer, predictor, ids, **options)
        estimates.append((title, found))
    if as_json:
        rows = [{"prompt": title, **_finite(found)} for title, found in estimates]
        result = {"model": model, "estimates": rows}
        click.echo(json.dumps(result, ensure_ascii=False, indent=2))
    else:
        _print_table(estimates)


def model_or_demo(model: str | None) -> str:
    """The model to use: the built-in one, and a line that says so, if none is given."""
    if model is not None:
        return model
    click.echo(demo.NOTICE, err=True)
    return demo.NAME


def _take(options: dict, *names: str) -> dict:
    return {name: options.pop(name) for name in names}


def check_options(model: str | None, options: dict) -> None:
    """Checks what can be checked of a reply's options before minutes of loading.

    Raises:
        ValueError: Naming the option that cannot be honoured.
    """
    budget = check_budget(options["thinking_budget"])
    check_hard_stop(options.get("hard_stop"))
    check_temperature(options["temp"])
    folder = Path(model or demo.FOLDER)
    if folder.is_dir() and options["predictor"] is None:
        if not is_predictor_folder(folder):
            check_enforceable(budget, None, None)
    if options["max_tokens"] == 0:
        raise ValueError("--max-tokens must be 1 or more, or -1 for no limit.")


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


def _read_prompt(prompt: str) -> str:
    try:
        if prompt == "-":
            text = sys.stdin.buffer.read().decode("utf-8") if sys.stdin else ""
        else:
            text = prompt
            text.encode("utf-8")
    except UnicodeError:
        raise ValueError("The prompt is not UTF-8 text.") from None
    if not text.strip():
        raise ValueError("The prompt is empty: give one with --prompt.")
    return text


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


def _finite(found: ThinkingEstimate) -> dict:
    """The fields of an estimate; lengths beyond float32 are None, as JSON has them."""
    values = asdict(found)
    return {k: None if v == float("inf") else v for k, v in values.items()}


def _print_table(estimates: list[tuple[str, ThinkingEstimate]]) -> None:
    click.echo(f"{'mode':>8}{'10 %':>8}{'median':>8}{'90 %':>8}  prompt")
    for title, found in estimates:
        lengths = (found.mode, found.low, found.median, found.high)
        numbers = "".join(f"{length:8,.0f}" for length in lengths)
        title = " ".join(title.split())
        mark = "" if found.trusted else " (*)"
        click.echo(f"{numbers}  {title[:60]}{'...' if len(title) > 60 else ''}{mark}")
    click.echo("Predicted thinking length in tokens.", err=True)
    if not all(found.trusted for _, found in estimates):
        click.echo("(*) outside the predictor's guidance thresholds.", err=True)
