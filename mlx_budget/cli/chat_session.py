"""A chat in the terminal, with a thinking budget that can be changed as it goes.

Knows what a person types and is shown; nothing of caches or how options are parsed.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager
from typing import Any

import click

from ..engine.budgets import read_budget
from ..engine.conversation import Conversation
from ..engine.fields import keywords_of
from ..engine.generate import BudgetResponse, thinking_line
from ..engine.priors import LearnedPrior
from ..engine.settings import (
    AutoBudget,
    Budget,
    ModelSource,
    PromptOptions,
    Sampling,
    ThinkingBudget,
)
from ..engine.template import switch_line
from ..interrupts import raise_again
from ..models.loading import load_source
from .ahead import reply_check
from .chat_commands import HELP, LETTERS
from .chat_files import ChatFiles
from .chat_prompt import Prompt, open_prompt
from .prior import learned_prior, sharpened
from .terminal import ReplyPrinter


def run_chat(
    source: ModelSource,
    thinking: ThinkingBudget,
    sampling: Sampling,
    template: PromptOptions,
    *,
    learn_prior: bool = False,
    load: str | None = None,
    given: Collection[str] = (),
    history: bool = True,
    hide_thinking: bool = False,
    verbose: bool = True,
    **options: Any,
) -> None:
    """Chats until the user ends it or standard input does.

    Args:
        source (ModelSource): The model and its predictor.
        thinking (ThinkingBudget): The first budget, and how all are held.
        sampling (Sampling): How replies are drawn, with a seed for each turn as
            `Conversation` gives them.
        template (PromptOptions): How the chat becomes a prompt.
        load (str, optional): File of a saved chat to go on with.
        given (Collection): Keywords of the options that the user gave, which what was
            saved does not change.
        history (bool): Whether a terminal remembers what is typed for the next chat.
        hide_thinking (bool): Whether to show answers only.
        verbose (bool): Whether to print statistics on stderr.
        options: The other options of `stream_generate`.

    Raises:
        ValueError: If the model cannot be loaded, cannot chat or cannot honour the
            budget, or there is no standard input.
    """
    if sys.stdin is None:
        raise ValueError("There is no standard input to chat on.")
    if (limit := options.get("max_tokens")) is not None:
        thinking.check_room(limit)
    check = reply_check(
        source,
        thinking,
        template,
        ["Hello"],
        learn_prior=learn_prior,
        needs_chat=True,
        max_tokens=options.get("max_tokens"),
        loop=options,
    )
    model, tokenizer, predictor = load_source(source, check=check)
    learned = learned_prior(learn_prior, source, tokenizer, thinking)
    predictor = sharpened(predictor, learned, thinking, source)
    keywords = keywords_of(template) | keywords_of(thinking) | keywords_of(sampling)
    del keywords["ignore_chat_template"]
    budget = keywords.pop("thinking_budget")
    conversation = Conversation(model, tokenizer, predictor, **keywords, **options)
    raise_again()
    chat = Chat(
        conversation,
        open_prompt(history),
        ChatFiles(conversation, source, given),
        conversation.check_budget(budget),
        hide_thinking,
        verbose,
        learned,
    )
    if load is not None:
        chat.load(load)
    chat.run(f"Chat with {source.model}: /help lists the commands, /quit ends it.")


class Chat:
    """Takes what a prompt reads: messages, and commands that begin with a slash.

    Replies go to standard output, all else to standard error. On a terminal Ctrl-C
    ends a reply, and twice in a row at the empty prompt it ends the chat; where the
    input comes from elsewhere it ends the program, as usual.
    """

    def __init__(
        self,
        conversation: Conversation,
        prompt: Prompt,
        files: ChatFiles,
        budget: Budget = None,
        hide_thinking: bool = False,
        verbose: bool = True,
        learned: LearnedPrior | None = None,
    ):
        self._learned = learned
        self._conversation = conversation
        self._budget = budget
        self._hide_thinking = hide_thinking
        self._verbose = verbose
        self._prompt = prompt
        self._files = files
        self._is_over = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/budget": self._set_budget,
            "/thinking": self._set_thinking,
            "/stats": self._set_statistics,
            "/system": self._set_system_prompt,
            "/save": self._save,
            "/load": self.load,
            "/reset": self._reset,
            "/help": lambda _: _say(HELP),
            "/quit": self._quit,
        }

    def run(self, greeting: str) -> None:
        """Takes lines until the chat is over."""
        if self._is_interactive:
            _say(greeting)
        with closing(self._prompt):
            while not self._is_over:
                try:
                    self._take(self._read())
                except ValueError as e:
                    if os.environ.get("MLX_BUDGET_DEBUG"):
                        raise
                    _say(f"Error: {' '.join(str(e).split())}")
                except KeyboardInterrupt:  # of one too many in a reply
                    if not self._is_interactive:
                        raise

    @property
    def _is_interactive(self) -> bool:
        return self._prompt.is_interactive

    def _read(self) -> str | None:
        """The next message; None at the end, which a second Ctrl-C in a row is too."""
        was_pressed = False
        while True:
            try:
                return self._prompt.read()
            except KeyboardInterrupt:
                if not self._is_interactive:
                    raise
                if was_pressed and not self._prompt.was_touched:
                    return None
                _say("\nCtrl-C once more ends the chat.")
                was_pressed = True

    def _take(self, line: str | None) -> None:
        if line is None:
            self._is_over = True
            if self._is_interactive:
                _say("")
            return
        if (command := self._command_in(line)) is not None:
            name, argument = command
            self._commands[name](argument)
        elif text := _without_blank_lines(line):
            self._answer(text)

    def _command_in(self, line: str) -> tuple[str, str] | None:
        """A command and its argument; None for a message.

        Raises:
            ValueError: If there is no such command.
        """
        text = line.strip()
        if not line.startswith("/") and line.rstrip() not in LETTERS:
            return None
        name, *argument = LETTERS.get(text, text).split(maxsplit=1)
        if name in self._commands:
            return name, "".join(argument)
        if "\n" in text:  # a pasted path or comment
            return None
        raise ValueError(
            f"There is no command {name!r}: /help lists them. Put a space before a "
            "message that begins with a slash."
        )

    def _answer(self, question: str) -> None:
        before = len(self._conversation.messages)
        printer = ReplyPrinter(sys.stdout, sys.stderr, self._hide_thinking)
        last, is_stopped = None, False
        try:
            with (
                _interrupts_held(self._is_interactive) as stopped,
                closing(
                    self._conversation.ask(question, self._budget, stopped)
                ) as responses,
            ):
                for last in responses:
                    printer.update(last)
                is_stopped = stopped()
            if self._learned and last is not None and last.reply is not None:
                self._learned.learn(last.reply)
        except KeyboardInterrupt:
            if not self._is_interactive:
                raise
            is_stopped = True
        except OSError:  # nobody reads the replies any more
            raise
        except Exception as e:  # whatever the template, the model or MLX raises
            raise ValueError(str(e) or repr(e)) from e
        finally:
            if last is not None:
                printer.end()
        is_kept = len(self._conversation.messages) > before
        _say_what_is_kept(is_kept, is_stopped, last)
        if self._verbose and last is not None:
            self._print_statistics(last)

    def _print_statistics(self, last: BudgetResponse) -> None:
        if last.thinking_budget is not None or last.thinking_tokens:
            _say(thinking_line(last))
        chat = self._conversation
        if chat.switch is not None:
            _say(switch_line(chat.switch))
        read = f"{last.prompt_tokens} of them new"
        if chat.read_again:
            read = (
                f"{last.prompt_tokens} of them read, {chat.read_again} not for the "
                f"first time ({chat.reason})"
            )
        _say(
            f"Answer: {last.answer_tokens} tokens; prompt: {chat.prompt_tokens} "
            f"tokens, {read}; {last.generation_tps:.1f} tokens-per-sec"
        )

    def _set_budget(self, text: str) -> None:
        if text:
            try:
                budget = None if text == "off" else read_budget(text)
                self._budget = self._conversation.check_budget(budget)
            except ValueError as e:  # which calls it as Python does
                said = str(e).replace("thinking_budget", "/budget")
                raise ValueError(said) from e
        _say(f"Thinking budget: {_shown(self._budget)}")

    def _set_thinking(self, text: str) -> None:
        is_shown = _choice("/thinking", text, "show", "hide", not self._hide_thinking)
        self._hide_thinking = not is_shown
        _say(f"Thinking: {'shown' if is_shown else 'hidden'}")

    def _set_statistics(self, text: str) -> None:
        self._verbose = _choice("/stats", text, "on", "off", self._verbose)
        _say(f"Statistics: {'on' if self._verbose else 'off'}")

    def _set_system_prompt(self, text: str) -> None:
        if text:
            self._conversation.system_prompt = None if text == "off" else text
        _say(f"System prompt: {self._conversation.system_prompt or 'none'}")

    def _save(self, name: str) -> None:
        _say(self._files.save(name, self._budget))

    def load(self, name: str) -> None:
        """Goes on with a saved chat in place of this one.

        Raises:
            ValueError: If it cannot be loaded. The chat stays as it was.
        """
        self._budget, told = self._files.load(name, self._budget)
        _say(f"{told} Thinking budget: {_shown(self._budget)}")

    def _reset(self, _: str) -> None:
        self._conversation.reset()
        self._files.forget()
        _say("The history is forgotten.")

    def _quit(self, _: str) -> None:
        self._is_over = True


def _say(text: str) -> None:
    click.echo(text, err=True)


def _say_what_is_kept(
    is_kept: bool, is_stopped: bool, last: BudgetResponse | None
) -> None:
    if is_stopped:
        if last is None:
            _say("")
        rest = "the answer so far is kept" if is_kept else "this turn is forgotten"
        _say(f"Interrupted: {rest}.")
    elif not is_kept:
        _say("There was no answer: this turn is forgotten.")


def _without_blank_lines(text: str) -> str:
    """A message without what is blank around it.

    Of several lines the first keeps its indentation: it may be code.
    """
    stripped = text.strip()
    if "\n" not in stripped:
        return stripped
    return re.sub(r"\A(?:[^\S\n]*\n)+", "", text).rstrip()


def _shown(budget: Budget) -> str:
    if budget is None:
        return "off"
    return str(budget) if isinstance(budget, AutoBudget) else f"{budget} tokens"


def _choice(command: str, text: str, yes: str, no: str, now: bool) -> bool:
    """What a command of two values sets; as it is now if it has no argument."""
    if not text:
        return now
    if text not in (yes, no):
        raise ValueError(f"{command} takes {yes} or {no}, not {text!r}.")
    return text == yes


@contextmanager
def _interrupts_held(is_interactive: bool) -> Iterator[Callable[[], bool]]:
    """Holds back a first Ctrl-C, so that a reply can end between two tokens.

    A second one is not held back.

    Yields:
        Callable: Whether there was one.
    """
    was_pressed = False

    def press(*_: object) -> None:
        nonlocal was_pressed
        if was_pressed:
            raise KeyboardInterrupt
        was_pressed = True

    former = signal.getsignal(signal.SIGINT)
    if not is_interactive or former is not signal.default_int_handler:
        yield lambda: False
        return
    signal.signal(signal.SIGINT, press)
    try:
        yield lambda: was_pressed
    finally:
        signal.signal(signal.SIGINT, former)
