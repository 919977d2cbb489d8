"""Replies of a scripted model, alone and in a batch, and scripts written by chance.

A script is a list of pieces: words, line ends, markers meant and quoted, tool calls,
characters of several bytes, ends of turn. Knows the front doors of the engine; nothing
of what is right.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from mlx_lm.tokenizer_utils import TokenizerWrapper

from mlx_budget import batch_generate, stream_generate
from mlx_budget.engine.batch import BatchReply
from mlx_budget.engine.generate import BudgetResponse
from mlx_budget.engine.sampler import steer
from scripted import ScriptedBatch, ScriptedModel


@dataclass(frozen=True)
class Markers:
    """The texts that tell the parts of a reply in one way of writing them.

    Attributes:
        start, end: Open and close thinking.
        call, call_end: Begin and end a tool call.
        eos: Ends the turn.
    """

    start: str = "<think>"
    end: str = "</think>"
    call: str = "<tool_call>"
    call_end: str = "</tool_call>"
    eos: str = "<|im_end|>"

    def pieces(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """Texts to write replies with; what is in two of them is never one token."""
        arguments = '\n{"name": "add", "arguments": {"a": 2, "b": "%s"}}\n'
        quoting = (
            (self.call, arguments % marker, self.call_end)
            for marker in (self.start, self.end)
        )
        return {
            "word": (
                ("I count on",),
                (" so",),
                (" five.",),
                (" Why is the sky blue?",),
            ),
            "line": (("\n",), ("\n\n",), (".\n",)),
            "open": ((self.start,),),
            "close": ((self.end,),),
            "quoted": ((f"`{self.start}`",), (f" {self.start} opens",)),
            "spelt": tuple(
                (f'"{marker[0]}', marker[1:-1], f'{marker[-1]}"')
                for marker in (self.start, self.end)
            ),
            "call": ((self.call, arguments % 3, self.call_end),),
            "quoting call": tuple(quoting),
            "bytes": (("é",), ("日本",), ("🙂",), ("👩‍🔬",)),
            "end": ((self.eos,),),
        }


# How often each of the pieces comes.
_SHARES = (8, 4, 1, 2, 1, 1, 1, 0.5, 3, 0.3)

Script = list[tuple[str, ...]]


def write_script(rng: random.Random, markers: Markers) -> Script:
    """Up to 14 pieces in random order."""
    pieces = markers.pieces()
    kinds = rng.choices(list(pieces), _SHARES, k=rng.randint(1, 14))
    return [rng.choice(pieces[kind]) for kind in kinds]


def encode(tokenizer: TokenizerWrapper, script: Script) -> list[int]:
    """Its tokens, every text encoded by itself."""
    return [
        token
        for texts in script
        for text in texts
        for token in tokenizer.encode(text, add_special_tokens=False)
    ]


@dataclass(frozen=True)
class Said:
    """One reply as both doors give it.

    Attributes:
        responses: Of the stream, one for each token, and one for the token that ends
            the turn if one did.
        batch: The same reply out of a batch.
        forced: Indices of the tokens that were put in.
    """

    responses: list[BudgetResponse]
    batch: BatchReply
    forced: frozenset[int]

    @property
    def last(self) -> BudgetResponse:
        return self.responses[-1]

    @property
    def tokens(self) -> list[int]:
        return self.last.reply.tokens

    @property
    def text(self) -> str:
        return "".join(response.text for response in self.responses)


def say(
    tokenizer: TokenizerWrapper, prompt: list[int], script: list[int], **options
) -> Said:
    """What becomes of a script under options of `stream_generate`."""
    responses = list(stream(tokenizer, prompt, script, **options))
    samplers = []

    def keep(*args, **kwargs):
        samplers.append(steer(*args, **kwargs))
        return samplers[-1]

    (reply,) = batch_generate(
        _model(ScriptedBatch, tokenizer, prompt, script),
        tokenizer,
        [prompt],
        make_sampler=keep,
        **{**_DEFAULTS, **options},
    ).replies
    # The loop runs one step past the end.
    forced = {i for i in samplers[0].forced_steps if i < len(reply.tokens)}
    return Said(responses, reply, frozenset(forced))


def stream(
    tokenizer: TokenizerWrapper, prompt: list[int], script: list[int], **options
) -> Iterator[BudgetResponse]:
    """The same, piece by piece."""
    model = _model(ScriptedModel, tokenizer, prompt, script)
    yield from stream_generate(model, tokenizer, prompt, **{**_DEFAULTS, **options})


_DEFAULTS = {"predictor": False, "max_tokens": 300}


def _model(
    kind: type[ScriptedModel],
    tokenizer: TokenizerWrapper,
    prompt: list[int],
    script: list[int],
) -> ScriptedModel:
    # Whatever takes the place of the first one, the turn ends.
    ends = [tokenizer.eos_token_id] * 64
    return kind([*script, *ends], len(prompt), len(tokenizer._tokenizer))
