"""The command `generate`: a reply to one prompt.

Knows how a reply is asked for and shown; nothing of how tokens are chosen.
"""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any

import click

from ..engine.answers import AnswerFormat, answer_to
from ..engine.fields import keywords_of
from ..engine.settings import (
    ModelSource,
    PromptOptions,
    Sampling,
    ThinkingBudget,
    check_kv_options,
)
from ..engine.tags import tag_of
from ..interrupts import raise_again
from ..ranks import current
from .ahead import reply_check
from .command import Command
from .options import (
    HIDE_THINKING_OPTION,
    JSON_OPTION,
    KV_OPTIONS,
    MAX_KV_SIZE_OPTION,
    MAX_TOKENS_OPTION,
    PREFILL_OPTION,
    PROMPT_HELP,
    VERBOSE_OPTION,
    check_reply,
    options_from,
    read_prompt,
    tell_of_demo,
)
from .parameters import COUNT, command_option
from .prior import (
    LEARN_PRIOR_OPTION,
    learned_prior,
    names_fitting,
    sharpened,
)
from .terminal import ReplyPrinter

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from ..engine.generate import BudgetResponse
    from ..engine.priors import LearnedPrior


@click.command(cls=Command)
@options_from(source=ModelSource)
@command_option("--prompt", "-p", required=True, group="Prompt", help=PROMPT_HELP)
@options_from(thinking=ThinkingBudget, answer=AnswerFormat)
@LEARN_PRIOR_OPTION
@HIDE_THINKING_OPTION
@JSON_OPTION
@VERBOSE_OPTION
@MAX_TOKENS_OPTION
@options_from(sampling=Sampling, template=PromptOptions)
@command_option(
    "--prefill-response",
    group="Prompt",
    help="How the answer has begun already: the chat template renders it as the last "
    "message, most of them without thinking, and it is not shown. See --reply-prefix.",
)
@command_option(
    "--extra-eos-token",
    multiple=True,
    group="Output",
    help="Another token that ends the reply, in its thinking too unless "
    "--answer-anyway lets it answer.",
)
@MAX_KV_SIZE_OPTION
@KV_OPTIONS
@PREFILL_OPTION
@command_option(
    "--prompt-cache-file",
    group="Prompt",
    help="KV cache saved by `mlx_lm.cache_prompt`, to go on from.",
)
@command_option(
    "--draft-model",
    group="Memory and speed",
    help="Speculative decoding; not with a budget.",
)
@command_option(
    "--num-draft-tokens",
    type=COUNT,
    default=3,
    show_default=True,
    group="Memory and speed",
    help="Tokens to draft at a time.",
)
@names_fitting
def generate(
    source: ModelSource,
    prompt: str,
    thinking: ThinkingBudget,
    answer: AnswerFormat,
    learn_prior: bool,
    sampling: Sampling,
    template: PromptOptions,
    hide_thinking: bool,
    as_json: bool,
    verbose: bool,
    prefill_response: str | None,
    extra_eos_token: tuple[str, ...],
    prompt_cache_file: str | None,
    draft_model: str | None,
    num_draft_tokens: int,
    **options: Any,
) -> None:
    """Answer a prompt, thinking within a budget of tokens."""
    check_reply(source, thinking, options["max_tokens"], learn_prior)
    if options["max_tokens"] is not None:
        thinking.check_room(options["max_tokens"])
    check_kv_options(options["kv_bits"], options["max_kv_size"])
    if current() is not None:
        for name, given in (
            ("--draft-model", draft_model),
            ("--prompt-cache-file", prompt_cache_file),
        ):
            if given is not None:
                raise ValueError(
                    f"{name} cannot be used on several Macs: leave it out."
                )
    if draft_model is not None and not answer.is_free:
        raise ValueError(
            "Speculative decoding (--draft-model) cannot be combined with "
            "--json-schema: leave out one of them."
        )
    if draft_model is not None and thinking.is_steered:
        raise ValueError(
            "Speculative decoding (--draft-model) cannot be combined with a thinking "
            "budget, nor with --stop-loops: leave out one of them."
        )
    if draft_model is not None and thinking.prefix:
        raise ValueError(
            "Speculative decoding (--draft-model) cannot be combined with "
            "--reply-prefix: leave out one of them."
        )
    _check_together(draft_model, prompt_cache_file, options, template)
    tell_of_demo()
    text = read_prompt(prompt)

    from ..engine.context import context_length
    from ..engine.generate import stream_generate
    from ..engine.prompts import encode_chat
    from ..engine.template import ask_template, switch_line
    from ..models.loading import load, load_source

    tokenizer_config = None
    if prompt_cache_file is not None:
        options["prompt_cache"], tokenizer_config = _load_cache(
            prompt_cache_file,
            source.model,
            options["kv_bits"],
            options["kv_group_size"],
        )

    def check_tokenizer(tokenizer: "TokenizerWrapper") -> None:
        _check_ends(tokenizer, extra_eos_token)
        if (wanted := answer_to(answer)) is not None:
            wanted.begin(tokenizer)

    check = reply_check(
        source,
        thinking,
        template,
        [text],
        learn_prior=learn_prior,
        draft_model=draft_model,
        max_tokens=options["max_tokens"],
        loop=options,
        check=check_tokenizer,
        prefill_response=prefill_response,
    )
    model, tokenizer, predictor = load_source(
        source, tokenizer_config=tokenizer_config, check=check
    )
    learned = learned_prior(learn_prior, source, tokenizer, thinking)
    predictor = sharpened(predictor, learned, thinking, source)
    _check_ends(tokenizer, extra_eos_token)
    for token in extra_eos_token:
        tokenizer.add_eos_token(token)
    if draft_model is not None:
        options["draft_model"], drafts, _ = load(draft_model, predictor=False)
        if drafts.vocab_size != tokenizer.vocab_size:
            raise ValueError(
                f"The tokenizer of {draft_model} is not that of {source.model}."
            )
        options["num_draft_tokens"] = num_draft_tokens
        del options["max_kv_size"]
    template, switch = ask_template(tokenizer, thinking, template)
    ids = encode_chat(
        tokenizer,
        text,
        suffix_only=prompt_cache_file is not None,
        prefill_response=prefill_response,
        most_tokens=context_length(model, tokenizer, options.get("max_kv_size")),
        **keywords_of(template),
    )
    raise_again()
    responses: Iterable[BudgetResponse] = stream_generate(
        model,
        tokenizer,
        ids,
        predictor=predictor,
        **keywords_of(thinking),
        **keywords_of(sampling),
        **keywords_of(answer),
        **options,
    )
    if learned is not None:
        responses = _learning(responses, learned)
    if as_json:
        left_out_by = switch if thinking.tokens == 0 else None
        _print_json(responses, source.model, left_out_by, hide_thinking)
    else:
        _print_live(responses, hide_thinking, verbose)
        if verbose and switch is not None:
            click.echo(switch_line(switch), err=True)


def _learning(
    responses: "Iterable[BudgetResponse]", learned: "LearnedPrior"
) -> "Iterator[BudgetResponse]":
    """The same responses, the last of which teaches the prior."""
    last = None
    for last in responses:
        yield last
    if last is not None and last.reply is not None:
        learned.learn(last.reply)


def _check_ends(tokenizer: "TokenizerWrapper", tokens: Iterable[str]) -> None:
    vocabulary = tokenizer.get_vocab()
    ids = {str(token) for token in vocabulary.values()}
    for token in tokens:
        if token not in ids and token not in vocabulary:
            raise ValueError(f"--extra-eos-token {token!r} is no token of the model.")


def _check_together(
    draft_model: str | None,
    prompt_cache_file: str | None,
    loop: dict[str, Any],
    template: PromptOptions,
) -> None:
    """Raises a ValueError if one option would be of no effect beside another."""
    has_limit = loop["max_kv_size"] is not None
    pairs = (
        ("--draft-model", draft_model, "--max-kv-size", has_limit),
        ("--draft-model", draft_model, "--prompt-cache-file", prompt_cache_file),
        ("--prompt-cache-file", prompt_cache_file, "--max-kv-size", has_limit),
        (
            "--prompt-cache-file",
            prompt_cache_file,
            "--system-prompt",
            template.system_prompt,
        ),
    )
    for first, is_first, second, is_second in pairs:
        if is_first and is_second:
            raise ValueError(
                f"{first} cannot be combined with {second}: leave one out."
            )


def _load_cache(
    file: str, model: str, kv_bits: int | None, kv_group_size: int
) -> tuple[list, dict[str, Any]]:
    """A saved KV cache, and the settings of the tokenizer that it was made with."""
    from mlx_lm.models.cache import QuantizedKVCache, load_prompt_cache

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
        for option, value, saved in (
            ("--kv-bits", kv_bits, cache[0].bits),
            ("--kv-group-size", kv_group_size, cache[0].group_size),
        ):
            if value not in (None, saved):
                raise ValueError(
                    f"{option} is {value}, but {file} was saved with {saved}."
                )
    return cache, tokenizer_config


def _print_live(
    responses: "Iterable[BudgetResponse]", hide_thinking: bool, verbose: bool
) -> None:
    from ..engine.generate import statistics

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
    responses: "Iterable[BudgetResponse]",
    model: str,
    left_out_by: dict[str, Any] | None,
    hide_thinking: bool,
) -> None:
    last: BudgetResponse | None = None
    interrupted = False
    try:
        # mlx-lm prints its warnings on standard output.
        with redirect_stdout(sys.stderr):
            for response in responses:
                last = response
    except KeyboardInterrupt:
        interrupted = True
    if last is None or last.reply is None:
        raise KeyboardInterrupt
    thinking, answer = last.reply.split()
    tag = tag_of(last.reply.text, last.reply.opening)
    result = {
        "model": model,
        "text": answer if hide_thinking else last.reply.text,
        **({} if hide_thinking else {"thinking": thinking.strip()}),
        "answer": answer.strip(),
        **({"tag": tag} if tag else {}),
        "thinking_budget": last.thinking_budget,
        "thinking_tokens": last.thinking_tokens,
        "after_close_tokens": last.after_close_tokens,
        "answer_tokens": last.answer_tokens,
        "closed_by": last.closed_by,
        "left_out_by_template": left_out_by,
        "no_answer": last.no_answer,
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
