"""A chat in the terminal, with a thinking budget that can be changed as it goes.

Knows what a person types and is shown; nothing of caches or how options are parsed.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import click

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
from .options import read_budget
from .prior import learned_prior, sharpened
from .terminal import ReplyPrinter

_SIGN = ">> "
_LETTERS = {"q": "/quit", "r": "/reset", "h": "/help"}
_HELP = """\
/budget N          think for about N tokens; 0 answers at once
/budget 80-100     for 80 to 100 tokens
/budget auto       for as many as the predictor expects of each question
/budget auto:0.63  for 63 % of them
/budget off        without a budget
/thinking show     show the thinking; /thinking hide leaves it out
/stats on          statistics after each reply; /stats off leaves them out
/system TEXT       set the system prompt; /system off leaves it out
/reset or r        forget the history
/help or h         show this list
/quit or q         end the chat, as Ctrl-D does
Alone, /budget, /thinking, /stats and /system tell how they are set. A message that
begins with a slash, or is one of those letters, needs a space before it. Ctrl-C ends a
reply: what came of its answer stays in the history, and a turn without an answer is
forgotten, its question too."""


def run_chat(
    source: ModelSource,
    thinking: ThinkingBudget,
    sampling: Sampling,
    template: PromptOptions,
    *,
    learn_prior: bool = False,
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
        hide_thinking (bool): Whether to show answers only.
        verbose (bool): Whether to print statistics on stderr.
        options: The other options of `stream_generate`.

    Raises:
        ValueError: If the model cannot be loaded, cannot chat or cannot honour the
            budget, or there is no standard input.
    """
    if sys.stdin is None:
        raise ValueError("There is no standard input to chat on.")
    model, tokenizer, predictor = load_source(source)
    learned = learned_prior(learn_prior, source, tokenizer, thinking)
    predictor = sharpened(predictor, learned, thinking)
    keywords = keywords_of(template) | keywords_of(thinking) | keywords_of(sampling)
    del keywords["ignore_chat_template"]
    budget = keywords.pop("thinking_budget")
    conversation = Conversation(model, tokenizer, predictor, **keywords, **options)
    raise_again()
    chat = Chat(
        conversation,
        conversation.check_budget(budget),
        hide_thinking,
        verbose,
        learned,
    )
    chat.run(f"Chat with {source.model}: /help lists the commands, /quit ends it.")


class Chat:
    """Takes lines from standard input: messages, and commands that begin with a slash.

    Replies go to standard output, all else to standard error. On a terminal Ctrl-C
    ends a reply, and twice in a row at the prompt it ends the chat; where the input
    comes from elsewhere it ends the program, as usual.
    """

    def __init__(
        self,
        conversation: Conversation,
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
        self._is_interactive = sys.stdin.isatty()
        self._is_over = False
        self._commands: dict[str, Callable[[str], None]] = {
            "/budget": self._set_budget,
            "/thinking": self._set_thinking,
            "/stats": self._set_statistics,
            "/system": self._set_system_prompt,
            "/reset": self._reset,
            "/help": lambda _: _say(_HELP),
            "/quit": self._quit,
        }

    def run(self, greeting: str) -> None:
        """Takes lines until the chat is over."""
        if self._is_interactive:
            _say(greeting)
            _edit_lines()
        interrupts = 0
        while not self._is_over:
            try:
                line = _read_line(self._is_interactive)
                interrupts = 0
                self._take(line)
            except ValueError as e:
                if os.environ.get("MLX_BUDGET_DEBUG"):
                    raise
                _say(f"Error: {' '.join(str(e).split())}")
            except KeyboardInterrupt:
                if not self._is_interactive:
                    raise
                interrupts += 1
                self._is_over = interrupts == 2
                _say("" if self._is_over else "\nCtrl-C once more ends the chat.")

    def _take(self, line: str | None) -> None:
        if line is None:
            self._is_over = True
            if self._is_interactive:
                _say("")
            return
        text = line.strip()
        if line.startswith("/") or line.rstrip() in _LETTERS:
            name, *argument = _LETTERS.get(text, text).split(maxsplit=1)
            if name not in self._commands:
                raise ValueError(
                    f"There is no command {name!r}: /help lists them. Put a space "
                    "before a message that begins with a slash."
                )
            self._commands[name](*argument or [""])
        elif text:
            self._answer(text)

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
            budget = None if text == "off" else read_budget(text)
            self._budget = self._conversation.check_budget(budget)
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

    def _reset(self, _: str) -> None:
        self._conversation.reset()
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


def _edit_lines() -> None:
    """Makes ``input`` edit lines and remember them, where Python was built to."""
    try:
        import readline  # noqa: F401
    except ImportError:
        pass


def _read_line(is_interactive: bool) -> str | None:
    """The next line, or None at the end of standard input.

    Raises:
        ValueError: If it is not UTF-8 text.
    """
    try:
        if is_interactive and sys.stdout.isatty():
            line = input(_SIGN)
        else:
            if is_interactive:
                click.echo(_SIGN, nl=False, err=True)
            read = sys.stdin.buffer.readline()
            if not read:
                return None
            line = read.decode("utf-8")
        line.encode("utf-8")
    except EOFError:
        return None
    except UnicodeError:
        raise ValueError("That line is not UTF-8 text.") from None
    return line


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
