"""Learning in the spare time of a program that has the model loaded.

The replies are those of `learn`, one at a time and token by token, so that whatever
else is to be done comes first. Knows how replies are recorded; nothing of servers.
"""

from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..engine.context import context_length
from ..engine.fields import keywords_of
from ..engine.generate import stream_generate
from ..engine.settings import ModelSource
from ..files.locks import in_use
from ..method.predictor import Predictor
from .learn import (
    TRACES_FILE,
    WORK,
    check_output,
    prompts_for,
    table_so_far,
    trace_options,
)
from .learn_options import FIRST_TABLE, LearnOptions
from .traces import open_traces


@dataclass(frozen=True)
class _Finished:
    """A reply that has ended, as a record takes it."""

    text: str
    tokens: list[int]
    thinking_tokens: int
    closed_by: str | None
    finish_reason: str
    prompt_tokens: int


class IdleLearner:
    """Makes the replies of `learn`, and tables of them, as there is time.

    Args:
        model, tokenizer: As `mlx_budget.load` returns them.
        source (ModelSource): The model.
        output (Path): The folder of `learn`, which the command goes on with.
        options (LearnOptions): As of `learn`.

    Attributes:
        table: The newest table, once there are replies for one.

    Raises:
        ValueError: If the folder holds something else, or is in use.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        source: ModelSource,
        output: Path,
        options: LearnOptions | None = None,
    ):
        check_output(output)
        self._output = output
        self.table: Predictor | None = None
        self._next_table = FIRST_TABLE
        asked = options or LearnOptions()
        self._steps = self._run(model, tokenizer, source, asked)

    def step(self) -> bool:
        """Generates one token.

        Returns:
            bool: Whether there is more to do.
        """
        return next(self._steps, None) is not None

    def close(self) -> None:
        """Ends it; a reply that is not finished is generated again another time."""
        self._steps.close()

    def _run(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        source: ModelSource,
        o: LearnOptions,
    ) -> Generator[bool, None, None]:
        work = self._output / WORK
        work.mkdir(parents=True, exist_ok=True)
        with in_use(work):
            run = trace_options(source, o)
            prompts = prompts_for(o, source.model, work)
            most, file = context_length(model, tokenizer), work / TRACES_FILE
            with open_traces(tokenizer, prompts, file, run, most) as traces:
                for index, sample in traces.missing:
                    last = None
                    for last in stream_generate(
                        model,
                        tokenizer,
                        traces.prompts[index],
                        predictor=False,
                        max_tokens=run.max_tokens,
                        **{
                            **keywords_of(run.thinking),
                            **keywords_of(run.sampling),
                            "seed": traces.seed_of(index, sample),
                        },
                    ):
                        yield True
                        if last.closed_by is not None:
                            break
                    if last is None or last.reply is None:
                        continue
                    reason = "closed" if last.closed_by else last.finish_reason
                    reply = last.reply
                    traces.add(
                        index,
                        sample,
                        _Finished(
                            reply.text,
                            reply.tokens,
                            reply.thinking_tokens,
                            reply.closed_by,
                            reason or "length",
                            last.prompt_tokens,
                        ),
                    )
                    closed = traces.stats.closed
                    if closed >= self._next_table:
                        # A table reads all replies: not at each.
                        self._next_table = 2 * closed
                        table = table_so_far(model, tokenizer, source, self._output, o)
                        table.save(self._output)
                        self.table = table
