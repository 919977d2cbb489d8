"""Prompts that have been read are not read again, and their replies stay the same."""

import pytest
from mlx_lm.generate import BatchStats

from mlx_budget import batch_generate
from mlx_budget.engine.known_prompts import KnownPrompts
from tiny_models import build


def ask(loaded, cases, **options):
    model, tokenizer, predictor = loaded
    stats = BatchStats()
    replies = batch_generate(
        model,
        tokenizer,
        [case["prompt_ids"] for case in cases],
        predictor=predictor,
        thinking_budget=[case["budget"] for case in cases],
        max_tokens=60,
        batch_size=3,
        **options,
    )
    return [r.tokens for r in replies.replies], replies.stats.prompt_tokens, stats


@pytest.fixture
def some(cases):
    """Cases with different prompts."""
    return list({tuple(c["prompt_ids"]): c for c in cases.values()}.values())[:6]


def test_replies_to_known_prompts_are_the_same(loaded, some):
    known = KnownPrompts(2**30)
    want, read, _ = ask(loaded, some)
    assert read == sum(len(c["prompt_ids"]) - 1 for c in some)
    for expected in (read, 0, 0):
        found, read, _ = ask(loaded, some, known_prompts=known)
        assert found == want
        assert read == expected
    assert len(known) == len(some)
    assert 0 < known.nbytes < 2**30


def test_what_begins_with_a_known_prompt_reads_the_rest(loaded, some):
    known = KnownPrompts(2**30)
    case = some[0]
    ask(loaded, [case], known_prompts=known)
    longer = {**case, "prompt_ids": [*case["prompt_ids"], 5, 6, 7]}
    found, read, _ = ask(loaded, [longer], known_prompts=known, keeps_prompts=False)
    assert found == ask(loaded, [longer])[0]
    assert read == 3  # its last token belongs to the reply, and so did the known one's
    assert len(known) == 1
    # It was not kept, so it is read again.
    assert ask(loaded, [longer], known_prompts=known)[1] == 3
    assert ask(loaded, [longer], known_prompts=known)[1] == 0


def test_nothing_is_thrown_away_for_what_comes_later(loaded, some):
    known = KnownPrompts(2**30)
    ask(loaded, some[:2], known_prompts=known)
    known.max_bytes = known.nbytes
    ask(loaded, some, known_prompts=known)
    assert len(known) == 2
    assert ask(loaded, some[:2], known_prompts=known)[1] == 0


def test_a_prompt_of_one_token_is_never_known():
    known = KnownPrompts(2**30)
    known.keep([], [])
    assert known.nearest([7]) == (None, [7])
    assert len(known) == 0


# A KV cache can be cut, so that of the longest prompt serves for what it begins with,
# but for the last token. A state cannot, and is kept for each.
@pytest.mark.parametrize("kind, again", [("mamba", 0), ("gemma3_text", 1)])
def test_other_caches_than_plain_ones(loaded, kind, again):
    model, known = build(kind), KnownPrompts(2**30)
    prompts = [[5, 6, 7, 8, 9], [5, 6, 7, 8, 10, 11], [9, 8, 7]]

    def replies(**options):
        made = batch_generate(
            model, loaded[1], prompts, predictor=False, max_tokens=12, **options
        )
        return [r.tokens for r in made.replies], made.stats.prompt_tokens

    want, read = replies()
    assert replies(known_prompts=known) == (want, read)
    assert replies(known_prompts=known) == (want, again)
