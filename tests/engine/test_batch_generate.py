"""Many replies at once: those that each prompt gets alone, and what comes with them."""

import mlx.core as mx
import pytest
from mlx_lm.generate import BatchStats

from mlx_budget import (
    BatchReply,
    batch_generate,
    generate,
    stream_batch_generate,
    stream_generate,
)
from mlx_budget.engine.batch import BatchReplies
from mlx_budget.engine.recorder import active_recorder
from scripted import ScriptedBatch

NEWLINE, START, END, EOS = 201, 423, 424, 2


@pytest.fixture(autouse=True)
def model_is_left_as_it_was(loaded):
    """After every test of this file."""
    classes = [type(m) for m in loaded[0].modules()]
    yield
    assert active_recorder(loaded[0]) is None
    assert [type(m) for m in loaded[0].modules()] == classes


def prompts_of(cases: dict[str, dict], n: int = 12) -> list[list[int]]:
    return [case["prompt_ids"] for case in cases.values()][:n]


def run(loaded, prompts, **options) -> BatchReplies:
    options = {"predictor": loaded[2], **options}
    return batch_generate(*loaded[:2], prompts, **options)


def stream(loaded, prompts, **options):
    options = {"predictor": loaded[2], **options}
    return stream_batch_generate(*loaded[:2], prompts, **options)


def scripted(loaded, script: list[int], **options) -> BatchReply:
    """The reply of a model that wants to say ``script`` and then the end."""
    prompt = [5, START]
    (reply,) = batch_generate(
        ScriptedBatch(script, len(prompt)),
        loaded[1],
        [prompt],
        predictor=False,
        batch_size=1,
        **options,
    ).replies
    return reply


@pytest.mark.parametrize("batch_size", [1, 3, 12])
def test_replies_are_golden_at_every_batch_size(loaded, cases, batch_size):
    chosen = list(cases.values())[: 4 * batch_size]
    found = run(
        loaded,
        [case["prompt_ids"] for case in chosen],
        thinking_budget=[case["budget"] for case in chosen],
        max_tokens=160,
        hard_stop=None,
        batch_size=batch_size,
    )
    assert found.texts == [r.text for r in found.replies]
    for i, (reply, case) in enumerate(zip(found.replies, chosen, strict=True)):
        want = case["guided_tokens"]
        ended = want[-1] == EOS
        want = want[:-1] if ended else want
        assert reply.tokens == want
        assert reply.index == i
        assert reply.finish_reason == ("stop" if ended else "length")
        assert reply.prompt_tokens == len(case["prompt_ids"])
        assert reply.thinking_budget == case["budget"]
        assert reply.guided_tokens == len(case["guided_steps"])


@pytest.mark.parametrize("batch_size", [1, 3])
def test_replies_are_those_that_each_prompt_gets_alone(loaded, cases, batch_size):
    model, tokenizer, predictor = loaded
    budgets = [None, 0, 5, 40, -1, 9]
    prompts = [case["prompt_ids"] for case in cases.values()][::2]
    limits = [30, None, 45, None, 1, None]
    found = run(
        loaded,
        prompts,
        thinking_budget=budgets,
        max_tokens=[limit or 70 for limit in limits],
        batch_size=batch_size,
    )
    for prompt, budget, limit, text in zip(
        prompts, budgets, limits, found.texts, strict=True
    ):
        assert text == generate(
            model,
            tokenizer,
            prompt,
            predictor=predictor,
            thinking_budget=budget,
            max_tokens=limit or 70,
        )
    assert [r.thinking_budget for r in found.replies] == [None, 0, 5, 40, None, 9]
    # A budget of 5 is closed at 5.5 tokens at the latest, 9 at 9.9 and 40 at 44.
    assert found.replies[2].thinking_tokens <= 5
    assert found.replies[5].thinking_tokens <= 9
    assert found.replies[3].thinking_tokens <= 44


def test_texts_and_token_ids_are_prompts_alike(loaded, cases):
    _, tokenizer, _ = loaded
    ids = tokenizer.encode("What is 14 + 7?<think>", add_special_tokens=True)
    prompts = ["What is 14 + 7?<think>", ids, mx.array(ids)]
    found = run(loaded, prompts, thinking_budget=5, max_tokens=12)
    assert len({tuple(r.tokens) for r in found.replies}) == 1
    assert {r.prompt_tokens for r in found.replies} == {len(ids)}


def test_a_reply_that_the_model_closes_by_hand(loaded):
    reply = scripted(loaded, [10, NEWLINE, END, 11, 12], thinking_budget=9)
    assert reply == BatchReply(
        index=0,
        text=loaded[1].decode([10, NEWLINE, END, 11, 12]),
        tokens=[10, NEWLINE, END, 11, 12],
        prompt_tokens=2,
        finish_reason="stop",
        is_thinking=False,
        thinking_tokens=2,
        thinking_budget=9,
        closed_by="model",
        guided_tokens=0,
        answer_tokens=2,
        marker_tokens=1,
    )


def test_a_reply_that_the_budget_closes_by_hand(loaded):
    reply = scripted(loaded, list(range(10, 30)), thinking_budget=3, max_tokens=6)
    # 3.3 tokens are three, and the marker takes the place of the fourth.
    assert reply.tokens == [10, 11, 12, END, 14, 15]
    assert (reply.thinking_tokens, reply.closed_by) == (3, "budget")
    assert (reply.finish_reason, reply.is_thinking) == ("length", False)


def test_a_reply_that_ends_inside_its_thinking_says_so(loaded):
    reply = scripted(loaded, [10, 11, 12, 13, 14], thinking_budget=9, max_tokens=4)
    assert (reply.finish_reason, reply.is_thinking) == ("length", True)
    assert (reply.thinking_tokens, reply.closed_by) == (4, None)


def test_without_a_limit_a_reply_ends_when_the_model_ends_it(loaded):
    reply = scripted(loaded, [10, END, *[11] * 400], thinking_budget=9, max_tokens=-1)
    assert (len(reply.tokens), reply.finish_reason) == (402, "stop")


def test_the_default_limit_leaves_2048_tokens_for_the_answer(loaded):
    reply = scripted(loaded, [11] * 9999, thinking_budget=0)
    assert (len(reply.tokens), reply.finish_reason) == (2048, "length")
    assert reply.tokens[0] == END


def test_a_limit_for_each_prompt(loaded, cases):
    limits = [3, 7, 1, 5]
    found = run(
        loaded,
        prompts_of(cases, 4),
        thinking_budget=40,
        max_tokens=limits,
        batch_size=2,
    )
    assert [len(r.tokens) for r in found.replies] == limits


def test_replies_come_in_the_order_in_which_they_finish(loaded, cases):
    limits = [9, 2, 6, 4]
    replies = stream(
        loaded, prompts_of(cases, 4), thinking_budget=40, max_tokens=limits
    )
    # All four start together, so the shortest is the first.
    assert [r.index for r in replies] == [1, 3, 2, 0]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_prompts_are_taken_as_there_is_room(loaded, cases, batch_size):
    taken = []

    def prompts():
        for i, prompt in enumerate(prompts_of(cases, 7)):
            taken.append(i)
            yield prompt

    replies = stream(
        loaded, prompts(), thinking_budget=5, max_tokens=4, batch_size=batch_size
    )
    for finished, _ in enumerate(replies):
        assert len(taken) <= finished + batch_size
    assert taken == list(range(7))


def test_a_consumer_that_stops_early_leaves_the_model_as_it_was(loaded, cases):
    replies = stream(
        loaded,
        prompts_of(cases),
        thinking_budget=40,
        max_tokens=[3, *[40] * 11],
        batch_size=4,
    )
    assert next(replies).index == 0
    assert active_recorder(loaded[0]) is not None
    replies.close()
    assert active_recorder(loaded[0]) is None


def test_an_error_on_the_way_leaves_the_model_as_it_was(loaded, cases):
    def fail(tokens, logits):
        raise RuntimeError("no more")

    options = {"thinking_budget": 40, "logits_processors": [fail]}
    with pytest.raises(RuntimeError, match="no more") as e:
        run(loaded, prompts_of(cases, 3), **options)
    # At once, not when the samplers go with the frames that the traceback keeps.
    assert e.tb is not None
    assert active_recorder(loaded[0]) is None


def test_an_empty_prompt_is_named_by_its_place(loaded, cases):
    prompts = [*prompts_of(cases, 2), []]
    with pytest.raises(ValueError, match="Prompt 2 is empty"):
        run(loaded, prompts, thinking_budget=40, max_tokens=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thinking_budget": [5, 40]}, "2 values for 3 prompts"),
        ({"max_tokens": [5, 4, 3, 2]}, "4 values for 3 prompts"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more, or -1 for no limit, not 0"),
        ({"max_tokens": [5, -3, 2]}, "max_tokens must be 1 or more.*not -3"),
        ({"prompts": "What is 1 + 1?"}, "put it in a list"),
        ({"prompts": [5, 6, 7]}, "a sequence of prompts: this is one"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"prefill_batch_size": 0}, "prefill_batch_size must be 1 or more, not 0"),
        ({"thinking_budget": [5, 40, -2]}, "thinking_budget must be .*not -2"),
        (
            {"thinking_budget": [5, "9", 1]},
            "integer number of tokens, auto, .* not '9'",
        ),
        ({"thinking_budget": "auto", "predictor": None}, "auto is a share of what"),
        ({"thinking_budget": 5, "guidance_tolerance": 2}, "guidance_tolerance must"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_generated(
    loaded, cases, monkeypatch, options, message
):
    def never(self, *args, **kwargs):
        raise AssertionError("The model was called.")

    monkeypatch.setattr(type(loaded[0]), "__call__", never)
    with pytest.raises(ValueError, match=message):
        run(loaded, **{"prompts": prompts_of(cases, 3), **options})


def test_prompts_from_an_iterator_are_not_dropped_for_want_of_a_budget(loaded, cases):
    prompts = iter(prompts_of(cases, 3))
    model, tokenizer, predictor = loaded
    replies = stream_batch_generate(
        model,
        tokenizer,
        prompts,
        predictor=predictor,
        thinking_budget=[5, 40],
        max_tokens=3,
        batch_size=1,
    )
    assert [next(replies).index, next(replies).index] == [0, 1]
    with pytest.raises(ValueError, match="thinking_budget has 2 values for 3 prompts"):
        next(replies)
    assert active_recorder(model) is None


@pytest.mark.parametrize("verbose", [True, False])
def test_no_prompts_give_no_replies(loaded, verbose, capsys):
    found = run(loaded, [], thinking_budget=5, verbose=verbose)
    assert (found.texts, found.replies) == ([], [])
    assert found.stats.generation_tokens == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("verbose", [True, False])
def test_statistics_are_filled_and_printed_when_asked(loaded, cases, capsys, verbose):
    found = run(
        loaded, prompts_of(cases, 3), thinking_budget=5, max_tokens=4, verbose=verbose
    )
    stats = found.stats
    # Three replies of four tokens; the last token of a prompt counts to its reply.
    assert stats.generation_tokens == 12
    assert stats.prompt_tokens == sum(len(p) - 1 for p in prompts_of(cases, 3))
    assert stats.generation_tps > 0 and stats.peak_memory > 0
    printed = capsys.readouterr().out
    if not verbose:
        assert printed == ""
        return
    assert "Finished 3 of 3" in printed
    assert "Generation: 12 tokens, " in printed
    assert f"Prompt: {stats.prompt_tokens} tokens, " in printed


def test_the_stream_fills_the_statistics_it_is_given(loaded, cases):
    stats = BatchStats()
    options = {"thinking_budget": 5, "max_tokens": 4}
    replies = list(stream(loaded, prompts_of(cases, 2), stats=stats, **options))
    assert stats.generation_tokens == sum(len(r.tokens) for r in replies) == 8


@pytest.mark.parametrize("batch_size", (1, 5))
def test_replies_can_end_with_their_thinking(loaded, cases, batch_size):
    options = {"thinking_budget": 20, "batch_size": batch_size, "max_tokens": 60}
    prompts = prompts_of(cases, 4 * batch_size)
    whole = run(loaded, prompts, **options).replies
    ended = run(loaded, prompts, **options, stop_after_thinking=True).replies
    assert any(r.closed_by is not None and r.tokens[-1] != END for r in whole)
    for all_of_it, part in zip(whole, ended, strict=True):
        assert part.thinking_tokens == all_of_it.thinking_tokens
        assert part.closed_by == all_of_it.closed_by
        assert part.tokens == all_of_it.tokens[: len(part.tokens)]
        if part.closed_by is not None:
            assert part.tokens[-1] == END
            assert part.finish_reason == "closed"


def test_a_limit_on_the_answer_leaves_thinking_alone(loaded, cases):
    """The reply ends with so many tokens behind its close, alone and in a batch."""
    prompts = prompts_of(cases)
    options = dict(thinking_budget=12, max_tokens=60)
    whole = run(loaded, prompts, **options).replies
    model, tokenizer, predictor = loaded
    for most in (1, 3):
        short = run(loaded, prompts, **options, max_answer_tokens=most).replies
        for prompt, reply, full in zip(prompts, short, whole, strict=True):
            behind = reply.answer_tokens + reply.after_close_tokens
            assert behind <= most
            assert reply.tokens == full.tokens[: len(reply.tokens)]
            assert reply.thinking_tokens == full.thinking_tokens
            *_, last = alone = list(
                stream_generate(
                    *(model, tokenizer, prompt),
                    predictor=predictor,
                    max_answer_tokens=most,
                    **options,
                )
            )
            assert last.reply.tokens == reply.tokens
            assert "".join(r.text for r in alone) == reply.text
            assert last.finish_reason == reply.finish_reason
        assert "length" in {reply.finish_reason for reply in short}
    with pytest.raises(ValueError, match="max_answer_tokens must be 1 or more"):
        run(loaded, prompts, max_answer_tokens=0)
