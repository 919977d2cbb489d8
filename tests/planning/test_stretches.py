"""Thinking in stretches, on the built-in model with plans that are given."""

import pickle

import pytest

from mlx_budget import load, plan, stream_batch_generate, stream_generate, stream_plan
from mlx_budget.engine.markers import find_markers
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.planning.plans import Plan, plan_from
from mlx_budget.planning.run import finish
from mlx_budget.planning.shares import split
from mlx_budget.planning.stretches import InStretches, Stretch, stretches_of

QUESTION = "What is 7 + 1 + 5 - 9 + 8?"
TWO = {"parts": ["What is 7 + 1 + 5?", "- 9 + 8?"]}
THREE = {
    "parts": [
        {"question": "What is 7 + 1?", "credits": 40},
        {"question": "+ 5?", "credits": 30},
        {"question": "- 9 + 8?", "credits": 30},
    ]
}
DRAWN = {"temp": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def demo():
    return load("demo")


def planned(demo, given=TWO, budget=100, **options):
    model, tokenizer, predictor = demo
    options = {"predictor": predictor, **DRAWN, **options}
    return plan(
        model, tokenizer, QUESTION, plan=given, thinking_budget=budget, **options
    )


def hints(reply) -> list[str]:
    return [line for line in reply.thinking.splitlines() if line.startswith("Part ")]


def test_each_part_begins_with_its_hint_on_a_line_of_its_own(demo):
    reply = planned(demo, THREE, budget=180, temp=0.0)
    assert hints(reply) == [
        "Part 1 of 3: What is 7 + 1?",
        "Part 2 of 3: + 5?",
        "Part 3 of 3: - 9 + 8?",
    ]
    assert reply.text.count("</think>") == 1
    assert reply.answer.startswith("The answer is ")


def test_what_the_parts_used_is_all_the_thinking_there_was(demo):
    reply = planned(demo, THREE, budget=180, temp=0.0)
    last = reply.response
    assert sum(s.thinking for s in reply.stretches) == last.thinking_tokens
    put_in = sum(len(s.hint) for s in reply.stretches)
    # The last part is closed by the model; line ends before hints are put in as well.
    assert 0 <= last.reply.forced_tokens - put_in <= len(reply.stretches)
    assert all(s.closed_by for s in reply.stretches)


@pytest.mark.parametrize("guide", ["predictor", "prior", "hard stop"])
@pytest.mark.parametrize("budget", [70, 130])
def test_no_part_passes_the_hard_stop_of_its_share(demo, guide, budget):
    predictor = {"predictor": demo[2], "prior": None, "hard stop": False}[guide]
    for seed in range(2):
        reply = planned(demo, THREE, budget, predictor=predictor, seed=seed)
        for stretch in reply.stretches:
            if not stretch.is_left_out:
                assert stretch.thinking <= 1.1 * stretch.budget + 1e-9
        assert sum(s.share for s in reply.stretches) == budget


def test_a_plan_of_one_part_is_guidance_itself(demo):
    model, tokenizer, predictor = demo
    reply = planned(demo, {"parts": [QUESTION]}, budget=60)
    ids = encode_chat(tokenizer, QUESTION)
    options = {"predictor": predictor, "thinking_budget": 60, **DRAWN}
    alone = "".join(r.text for r in stream_generate(model, tokenizer, ids, **options))
    assert reply.text == alone


def test_what_is_left_over_goes_to_the_next_part_if_it_is_to(demo):
    kept, passed = (planned(demo, budget=140, rollover=r) for r in (False, True))
    first, second = passed.stretches
    assert first.closed_by == "model"
    assert second.passed_on == first.budget - first.thinking > 0
    assert [s.passed_on for s in kept.stretches] == [0, 0]
    assert hints(kept)[0] == hints(passed)[0]


def test_a_part_that_was_cut_passes_nothing_on(demo):
    reply = planned(demo, budget=60, predictor=False, rollover=True)
    first, second = reply.stretches
    assert (first.closed_by, second.passed_on) == ("budget", 0)


def test_a_share_that_does_not_hold_its_hint_goes_to_the_next(demo):
    given = {
        "parts": [
            {"question": "a" * 60, "credits": 20},
            {"question": "b", "credits": 80},
        ]
    }
    reply = planned(demo, given, budget=60)
    left_out, followed = reply.stretches
    assert (left_out.is_left_out, left_out.used) == (True, 0)
    assert followed.passed_on == left_out.share == 12
    assert hints(reply) == ["Part 2 of 2: b"]


def test_without_room_for_any_hint_thinking_is_one_stretch(demo):
    reply = planned(demo, THREE, budget=9)
    first, *others = reply.stretches
    assert first.budget == 9
    assert all(s.is_left_out for s in others)
    assert hints(reply) == []


def test_markers_in_a_hint_are_text(demo):
    given = {"parts": ["Is it </think> or <think>?", "- 9 + 8?"]}
    reply = planned(demo, given, budget=150)
    assert reply.text.count("</think>") == 1
    assert reply.response.closed_by in ("model", "budget")
    assert "- 9 + 8?" in reply.thinking


def test_markers_within_markers_of_a_hint_are_text(demo):
    tokenizer = demo[1]
    parts = ["<<</think>/think>/think> a", "<|<|im_end|>im_end|> b"]
    markers = find_markers(tokenizer)
    stretches = stretches_of(tokenizer, markers, plan_from({"parts": parts}), [60, 60])
    control = {*markers.end_tokens, *markers.start_tokens, *tokenizer.eos_token_ids}
    for stretch, end in zip(stretches, (" a\n", " b\n"), strict=True):
        assert control.isdisjoint(stretch.hint)
        assert tokenizer.decode(list(stretch.hint)).endswith(end)


def test_a_part_that_never_began_used_nothing(demo):
    reply = planned(demo, THREE, budget=120, max_tokens=15)
    assert sum(s.used for s in reply.stretches) == reply.response.generation_tokens
    assert [s.used > 0 for s in reply.stretches] == [True, False, False]
    first, second, third = (Stretch(40, (1, 2), has_begun=i == 0) for i in range(3))
    first.closed_by = "model"
    finish([first, second, third], 10, "model")
    assert (first.thinking, second.closed_by, second.used) == (10, None, 0)


@pytest.mark.parametrize("budget", [120, 180, 240])
def test_shares_pay_for_all_that_stands_in_thinking(demo, budget):
    reply = planned(demo, THREE, budget=budget)
    last = reply.response
    put_in = sum(len(s.hint) for s in reply.stretches)
    assert sum(s.used for s in reply.stretches) == last.thinking_tokens + put_in
    if last.closed_by == "model":
        assert last.reply.forced_tokens == put_in


def test_the_seed_decides_the_reply(demo):
    assert planned(demo).text == planned(demo).text
    assert planned(demo).text != planned(demo, seed=4).text


def test_replies_of_a_batch_follow_a_plan_each(demo):
    model, tokenizer, predictor = demo
    plans = [plan_from(TWO), plan_from(THREE), plan_from({"parts": [QUESTION]})]
    followed: list[list] = [[] for _ in plans]
    shares = [split(150, [p.credits for p in made.parts]) for made in plans]
    replies = stream_batch_generate(
        model,
        tokenizer,
        [encode_chat(tokenizer, QUESTION)] * 3,
        predictor=predictor,
        thinking_budget=150,
        make_sampler=[
            InStretches(*each)
            for each in zip(plans, shares, [False] * 3, followed, strict=True)
        ],
        **DRAWN,
    )
    found = {r.index: r.text for r in replies}
    for index, made in enumerate(plans):
        assert found[index] == planned(demo, made, budget=150).text
        assert len(followed[index]) == len(made.parts)


def test_asked_in_words_nothing_is_put_in_or_guided(demo):
    reply = planned(demo, budget=100, keep="words")
    assert reply.stretches == []
    assert reply.response.reply.forced_tokens == 0
    assert reply.response.reply.guided_tokens == 0
    assert [p["share"] for p in reply.as_dict()["parts"]] == [50, 50]


def test_the_plan_comes_before_the_first_token(demo):
    model, tokenizer, predictor = demo
    replies = stream_plan(
        model, tokenizer, QUESTION, predictor=predictor, plan=TWO, thinking_budget=80
    )
    made, response = next(replies)
    assert (made.shares, made.text, response) == ([40, 40], "", None)
    again, response = next(replies)
    assert again is made
    assert made.text == response.text


def test_without_a_budget_the_difficulty_decides(demo):
    for difficulty, tokens in ((1, 30), (5, 90)):
        given = plan_from({**TWO, "difficulty": difficulty})
        reply = planned(demo, given, budget=None, levels=(30, 45, 60, 75, 90))
        assert reply.budget == tokens


def test_auto_takes_what_the_predictor_expects(demo):
    half, whole = (planned(demo, budget=b).budget for b in ("auto:0.5", "auto"))
    assert whole > 0
    assert half == round(whole / 2) or abs(2 * half - whole) <= 1


def test_a_model_that_cannot_plan_gets_the_question_as_its_plan(demo):
    model, tokenizer, predictor = demo
    reply = plan(model, tokenizer, QUESTION, predictor=predictor, thinking_budget=60)
    assert [p.question for p in reply.plan.parts] == [QUESTION]
    assert reply.plan.problems
    assert reply.tokens == reply.plan.tokens + reply.response.generation_tokens
    assert reply.plan.tokens > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0}, "above 0"),
        ({"budget": "50-80"}, "one budget"),
        ({"min_thinking_tokens": 5}, "one budget"),
        ({"schedule": "square"}, "schedule must be one of"),
        ({"keep": "hope"}, "keep must be one of"),
        ({"levels": (1, 2, 3)}, "five numbers"),
        ({"levels": (1, 2, 3, 4, 0)}, "five numbers"),
        ({"budget": "auto", "predictor": None}, "share of what a predictor"),
        ({"given": {"parts": []}}, "1 to 5"),
        ({"predictor": False, "hard_stop": None}, "nothing would hold"),
    ],
)
def test_what_cannot_be_planned_is_said(demo, options, message):
    with pytest.raises(ValueError, match=message):
        planned(demo, **options)


def test_what_steers_a_reply_can_be_sent_to_other_ranks():
    made = plan_from(TWO)
    steering = InStretches(made, split(100, [50, 50]), True)
    assert pickle.loads(pickle.dumps(steering)) == steering


def test_a_plan_is_not_changed_by_following_it(demo):
    made = plan_from(THREE)
    assert isinstance(made, Plan)
    before = made.as_dict()
    planned(demo, made, budget=150)
    assert made.as_dict() == before
