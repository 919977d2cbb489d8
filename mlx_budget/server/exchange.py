"""One request and its reply, between the HTTP handler and the generation thread.

Knows replies as they pass: their thinking, stop words and clients; nothing of HTTP.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from mlx_lm import server

from ..engine.scoring import TokenScore
from . import parts
from .choice_fields import AskedChoices
from .errors import PromptCounted, RequestError
from .generation import BudgetResponseGenerator
from .ledger import Record
from .logprobs import LogprobsTeller
from .steering import SteeredArguments, SteeredRequest, Steering
from .stops import StopWords


class Exchange:
    """The generator as one request sees it: its reply followed, its client watched.

    Args:
        generator (BudgetResponseGenerator): Of the server.
        steering (Steering): Of the request.
        default_names (set[str]): Names of the default model.
        stop_in_thinking (bool): Whether stop words end a reply in its thinking too.
        record (Record, optional): Of the request, to be kept.
        choices (AskedChoices, optional): What is told besides the reply.

    Attributes:
        steering: Of the request.
        refusal: Why the request cannot be honoured, once that is known.
        stops: The stop words of the reply, once it is generated.
        context: mlx-lm's, of the reply, once it is generated.
    """

    def __init__(
        self,
        generator: BudgetResponseGenerator,
        steering: Steering,
        default_names: set[str],
        stop_in_thinking: bool = False,
        record: Record | None = None,
        choices: AskedChoices | None = None,
    ):
        self._generator = generator
        self._default_names = default_names
        self._stop_in_thinking = stop_in_thinking
        self._record = record or Record()
        self.steering = steering
        self.refusal: RequestError | None = None
        self.stops = StopWords(())
        self.context: Any = None
        self._finish_reason: str | None = None
        self._choices = choices or AskedChoices()
        self._has_echoed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def generate(
        self,
        request: server.CompletionRequest,
        generation_args: server.GenerationArguments,
        progress_callback: Callable[[int, int], None] | None = None,
    ) -> tuple[server.GenerationContext, Iterator[server.Response]]:
        """As `mlx_lm.server.ResponseGenerator.generate`.

        Raises:
            PromptCounted: If only the prompt's tokens are asked for.
            RequestError: If the request cannot be honoured.
            RuntimeError: If generation has failed.
        """
        # By one name, so that all its requests share a batch, adapter and predictor.
        named = generation_args.model
        if named.model in self._default_names | {"default_model"}:
            named.model = "default_model"
            if named.adapter is not None:
                # By that name it is served with the server's own.
                named.model = self._generator.cli_args.model
        self.stops = StopWords(generation_args.stop_words)
        generation_args.stop_words = []
        # Who asks for the continuation of a text means all of it.
        self._stop_in_thinking |= request.request_type == "text"

        def progress(processed: int, total: int) -> None:
            self._check_client()
            self._record.touch()
            if progress_callback is not None:
                progress_callback(processed, total)

        self._prompt_text = request.prompt
        self._record.wait()
        try:
            context, responses = self._generator.generate(
                SteeredRequest(**vars(request), steering=self.steering),
                SteeredArguments(**vars(generation_args)),
                progress_callback=progress,
            )
        except RequestError as e:
            if self.steering.only_counts and self.steering.prompt_tokens is not None:
                raise PromptCounted(self.steering.prompt_tokens) from None
            self.refusal = e
            raise
        except RuntimeError as e:
            self.refusal = RequestError(str(e), status=503)
            raise
        self.context = context
        self._record.prompt_tokens, self._record.cached_tokens = self.prompt
        self._record.reply = self.steering.reply
        return context, self._follow(responses, self.stops)

    @property
    def prompt(self) -> tuple[int, int]:
        """Tokens of the prompt, and those of them that were in the cache."""
        if self.context is None:
            return 0, 0
        return len(self.context.prompt), max(self.context.prompt_cache_count, 0)

    @functools.cached_property
    def logprobs(self) -> LogprobsTeller | None:
        """Tells the log-probabilities of the reply, if they are asked for."""
        if not self._choices.logprobs:
            return None
        tokenizer = self._generator.model_provider.tokenizer
        return LogprobsTeller(tokenizer, self._choices.top_logprobs)

    def echo(self) -> str | None:
        """The text of the prompt, where it is to be told, once."""
        if not self._choices.echoes or self._has_echoed:
            return None
        self._has_echoed = True
        if self.logprobs is not None:
            self.logprobs.take_before(self.steering.prompt_scores or [])
        if self.steering.prompt_ids is None:
            return self._prompt_text
        tokenizer = self._generator.model_provider.tokenizer
        text: str = tokenizer.decode(list(self.steering.prompt_ids))
        return text

    def thinking(self) -> dict[str, Any] | None:
        """How the reply's thinking went, or None if the model does not think."""
        reply = self.steering.reply
        if reply is None or not reply.thinks:
            return None
        told = {
            "budget": reply.thinking_budget,
            "tokens": reply.thinking_tokens,
            "closed_by": reply.closed_by,
        }
        reason = reply.why_no_answer(self._finish_reason)
        return told if reason is None else {**told, "no_answer": reason}

    @property
    def left_out_by(self) -> dict[str, Any] | None:
        """The chat template's arguments that left thinking out, if any did."""
        return self.steering.left_out_by

    def token_details(self) -> dict[str, Any] | None:
        """The reply's tokens by what they are, or None if the model does not think."""
        reply = self.steering.reply
        if reply is None or not reply.thinks:
            return None
        return {
            "reasoning_tokens": reply.thinking_tokens,
            "after_close_tokens": reply.after_close_tokens,
            "answer_tokens": reply.answer_tokens,
        }

    def _follow(
        self, responses: Iterator[server.Response], stops: StopWords
    ) -> Iterator[server.Response]:
        previous = None
        for response in responses:
            self._check_client()
            self._finish_reason = response.finish_reason
            self._record.take(response.finish_reason)
            text, is_over = self._read(response, stops)
            self._score(response)
            if is_over:
                self._record.finish_reason = "stop"
                yield replace(response, text=text, finish_reason=None)
                return  # which is "stop", and frees the slot
            if response.finish_reason is not None:
                text += stops.rest()
                if response.finish_reason == "stop" and text:
                    # mlx-lm drops the text of a last token that only ends the reply.
                    yield replace(previous or response, text=text, finish_reason=None)
                    text = ""
            self._check_answer()
            yield replace(response, text=text)
            previous = response

    def _read(self, response: server.Response, stops: StopWords) -> tuple[str, bool]:
        """The text of a response for the handler, and whether a stop word ends it."""
        reply = self.steering.reply
        if reply is None:
            return stops.take(response.text)
        pieces = []
        if response.finish_reason != "stop":
            pieces = reply.take(response.token)
        if response.finish_reason is not None:
            pieces += reply.finish()
            self._generator.model_provider.learn(reply)
        if not parts.SPLITS_TEXT:
            is_thinking = getattr(response, "state", None) == "reasoning"
            if is_thinking and not self._stop_in_thinking:
                stops.begin_answer()
                return stops.rest() + response.text, False
            return stops.take(response.text)
        told = ""
        for piece in pieces:
            text, is_over = self._search(piece, stops)
            told += text
            if is_over:
                return told, True
        return told, False

    def _search(self, piece: parts.Piece, stops: StopWords) -> tuple[str, bool]:
        """The text of a piece for the handler, and whether a stop word ends it."""
        mark, text = parts.mark_of(piece), parts.text_of(piece)
        if piece.part is parts.Part.MARKER:
            if not self._stop_in_thinking:
                stops.begin_answer()
                return stops.rest() + mark, False
            before, is_over = stops.take(piece.text)
            if is_over:
                return before, True
            before += stops.rest()
            return before.removesuffix(piece.text) + mark, False
        told = stops.rest() + mark if mark else ""
        if piece.part is parts.Part.THINKING and not self._stop_in_thinking:
            return told + text, False
        text, is_over = stops.take(text)
        return told + text, is_over

    def _score(self, response: server.Response) -> None:
        """Keeps how likely a token of the reply was."""
        if self.logprobs is None or response.finish_reason == "stop":
            return
        top = sorted(response.top_tokens, key=lambda entry: -entry["logprob"])
        likeliest = tuple((entry["id"], entry["logprob"]) for entry in top)
        score = TokenScore(response.token, response.logprob, likeliest)
        reply = self.steering.reply
        self.logprobs.take(score, reply is not None and reply.is_thinking)

    def _check_answer(self) -> None:
        constraint = self.steering.constraint
        if constraint is not None and constraint.error is not None:
            raise RequestError(constraint.error, "response_format", 500)

    def _check_client(self) -> None:
        if not self.steering.has_client():
            raise ConnectionAbortedError("the client has hung up")
        if self._generator.ends_replies:
            raise RequestError("The server is being stopped.", status=503)
