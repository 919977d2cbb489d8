"""Rivals: what each does to a scripted model, or to a tiny one that draws by chance."""

import re

import mlx.core as mx
import pytest

from mlx_budget import batch_generate
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import Sampling, ThinkingBudget
from mlx_budget.engine.thinking import find_markers
from mlx_budget.evaluate.arms import Arm, parse_budgets
from mlx_budget.evaluate.outcomes import Maker, Request
from mlx_budget.evaluate.rivals import exits
from mlx_budget.evaluate.rivals.exits import TrialSampler
from mlx_budget.evaluate.rivals.following import FollowingSampler, Paragraphs
from mlx_budget.evaluate.rivals.soft import SoftClose, TopKClose
from mlx_budget.evaluate.rivals.votes import vote
from mlx_budget.evaluate.rivals.words import REFLECTION, words_of
from mlx_budget.evaluate.run import evaluate
from mlx_budget.evaluate.strategies import FORCED_ANSWER, STRATEGIES
from mlx_budget.evaluate.tasks import Problem, Task
from scripted import ScriptedBatch

NEWLINE, START, END, V = 201, 423, 424, 448
PROMPT = [5, START]
TASK = Task(
    name="sums",
    problems=tuple(
        Problem(str(i), f"What is {a} + {b}?", str(a + b), False)
        for i, (a, b) in enumerate([(14, 7), (3, 9), (20, 5), (8, 8)])
    ),
    instruction="",
)


def say(loaded, script: list[int], arm: Arm, **options):
    """The reply of a model that wants to say ``script`` and then the end."""
    given = arm.generation(loaded[2], ThinkingBudget())
    (reply,) = batch_generate(
        ScriptedBatch(script, 2), loaded[1], [PROMPT], batch_size=1, **given, **options
    ).replies
    return reply


def sampler(kind, loaded, **thinking):
    """A sampler that is called by hand."""
    budget = ThinkingBudget(**thinking)
    return kind(loaded[0], loaded[1], False, PROMPT, budget, Sampling())


def logprobs(values: dict[int, float]) -> mx.array:
    """Log-probabilities, shape (1, V): those of some tokens above all others."""
    logits = mx.full((1, V), -60.0)
    for token, value in values.items():
        logits[0, token] = value
    return logits - mx.logsumexp(logits)


def encode(loaded, text: str) -> list[int]:
    return loaded[1].encode(text, add_special_tokens=False)


def run(loaded, output, **options) -> dict[str, dict]:
    defaults = dict(
        budgets=parse_budgets("24"), max_tokens=90, temp=1.0, seed=3, batch_size=4
    )
    records = evaluate(*loaded, TASK, output, **{**defaults, **options})
    return {record["id"]: record for record in records}


def draw(loaded, prompts: list[list[int]], **options) -> list[list[int]]:
    """Replies that are drawn by chance, each with a seed of its own."""
    given = dict(max_tokens=60, temp=1.0, seed=list(range(len(prompts))))
    found = batch_generate(*loaded[:2], prompts, **given, **options)
    return [reply.tokens for reply in found.replies]


def test_a_sampler_that_does_nothing_draws_what_no_budget_draws(loaded):
    prompts = [[5, START], [6, 7, START], [8, 9, 10, START]]
    free = draw(loaded, prompts, predictor=False)
    assert draw(loaded, prompts, predictor=False, make_sampler=FollowingSampler) == free
    assert len({tuple(tokens) for tokens in free}) == 3


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if s.sampler])
def test_draws_of_rivals_do_not_depend_on_the_batch(loaded, name):
    prompts = [encode_chat(loaded[1], problem.question) for problem in TASK.problems]
    # A minimum shows where it is longer than any of them thinks.
    budget = 55 if name == "wait" else 24
    options = Arm(name, str(budget), budget).generation(loaded[2], ThinkingBudget())
    together = draw(loaded, prompts, batch_size=4, **options)
    assert draw(loaded, prompts, batch_size=1, **options) == together
    assert together != draw(loaded, prompts, predictor=False)


def test_the_hard_stop_stands_alone(loaded):
    script = [10, 11, 12, NEWLINE, *[13] * 20]
    reply = say(loaded, script, Arm("hard-stop", "4", 4))
    # At the first line's end past the budget, with the marker alone.
    assert (reply.thinking_tokens, reply.tokens[:5]) == (4, [*script[:4], END])
    reply = say(loaded, [13] * 30, Arm("hard-stop", "10", 10))
    assert (reply.thinking_tokens, reply.closed_by) == (11, "budget")


@pytest.mark.parametrize("text", ["Wait", "Hmm", " wait", "wait", " But"])
def test_no_wait_leaves_words_of_reflection_out(loaded, text):
    word = encode(loaded, text)
    script = [10, NEWLINE, *word, 12, END, *word]
    reply = say(loaded, script, Arm("no-wait"))
    thinking, answer = reply.thinking, reply.answer
    assert text.strip() not in thinking
    # In the answer they are free, and nothing else is touched.
    assert text.strip() in answer
    assert len(reply.tokens) == len(script)
    changed = [a != b for a, b in zip(reply.tokens, script, strict=True)]
    assert sum(changed) == 1


def test_words_are_found_with_what_stands_around_them(loaded):
    tokenizer = loaded[1]
    words = words_of(tokenizer, REFLECTION)
    assert words is words_of(tokenizer, REFLECTION)
    alone = {tokenizer.decode([token]) for token in words.tokens}
    assert {"Wait", "Hmm", "check", " check"} <= alone
    # A word of several tokens is held by its last one, and not inside another.
    *begun, last = encode(loaded, "now")
    assert len(begun) > 0
    assert last in words.completed_by([NEWLINE, *begun])
    assert last in words.completed_by(begun)
    assert last not in words.completed_by([*encode(loaded, "k"), *begun])
    assert words.completed_by([10]) == words.tokens


def test_soft_close_lifts_the_marker_over_the_last_of_the_budget(loaded):
    reply = say(loaded, [10] * 60, Arm("soft-close", "20", 20))
    # A gap of 10 is closed by 2 * 10 * share once more than half of 14 to 20 is used.
    assert (reply.thinking_tokens, reply.closed_by) == (18, "model")
    reply = say(loaded, [10, 11, END, 20], Arm("soft-close", "20", 20))
    assert reply.tokens == [10, 11, END, 20]


def test_soft_close_leaves_a_marker_alone_that_is_out_of_reach(loaded):
    soft = sampler(SoftClose, loaded, tokens=20, hard_stop=1.0)
    tokens = [soft(logprobs({10: 0.0, END: -40.0})).item() for _ in range(21)]
    assert tokens == [10] * 20 + [END]
    # Never more than a nat above the likeliest.
    soft = sampler(SoftClose, loaded, tokens=20, hard_stop=1.0)
    for _ in range(19):
        soft(logprobs({10: 0.0, END: -40.0}))
    lifted = soft.adjust(logprobs({10: 0.0, END: -8.0}))
    assert (lifted[0, END] - lifted[0, 10]).item() == pytest.approx(1.0, abs=1e-4)


def test_soft_close_lifts_a_marker_of_several_tokens_in_order(loaded):
    end = encode(loaded, "</my thought>")
    soft = sampler(SoftClose, loaded, tokens=40, hard_stop=1.0, end="</my thought>")
    flat = logprobs({10: 0.0, **dict.fromkeys(end, -9.0)})
    tokens = [soft(flat).item() for _ in range(60)]
    at = tokens.index(end[0])
    assert tokens[:at] == [10] * at
    assert tokens[at : at + len(end)] == end
    assert not soft.tracker.thinking


@pytest.mark.parametrize(("likelier", "closes_at"), [(2, 8), (3, 12)])
def test_top_k_close_takes_the_marker_among_the_likeliest(loaded, likelier, closes_at):
    top = sampler(TopKClose, loaded, tokens=8, hard_stop=1.5)
    ahead = {10 + i: 0.0 - i for i in range(likelier)}
    tokens = [top(logprobs({**ahead, END: -9.0})).item() for _ in range(14)]
    assert tokens.index(END) == closes_at


def test_s1_has_a_floor_and_a_ceiling(loaded):
    (wait,) = encode(loaded, "Wait")
    script = [10, END, *[11] * 40]
    reply = say(loaded, script, Arm("s1", "10", 10))
    forced = [*encode(loaded, FORCED_ANSWER), END]
    assert reply.tokens[: 11 + len(forced)] == [10, wait, *[11] * 9, *forced]
    assert (reply.thinking_tokens, reply.forced_tokens) == (10, 1 + len(forced))
    reply = say(loaded, [*[11] * 9, END, 20], Arm("s1", "10", 10))
    assert (reply.tokens, reply.closed_by) == ([*[11] * 9, END, 20], "model")


def test_alpha_one_is_slow_before_its_moment_and_fast_after(loaded):
    (wait,) = encode(loaded, "Wait")
    # Before the moment "Wait" follows lines, with a chance that falls to 0.
    lines = [10, NEWLINE] * 300
    reply = say(loaded, lines, Arm("alpha-one", "600", 600), seed=1, max_tokens=700)
    early, late = reply.tokens[:300].count(wait), reply.tokens[300:600].count(wait)
    assert early > 1.5 * late > 0
    assert reply.forced_tokens == reply.tokens.count(wait)
    again = say(loaded, lines, Arm("alpha-one", "600", 600), seed=1, max_tokens=700)
    assert again.tokens == reply.tokens
    # Behind it the model's own "Wait" closes thinking, and nothing else does.
    script = [*[10] * 12, NEWLINE, 11, wait, 12]
    reply = say(loaded, script, Arm("alpha-one", "5", 5))
    assert reply.tokens[:15] == [*script[:14], END]
    assert (reply.thinking_tokens, reply.closed_by) == (14, "budget")


def test_notes_say_what_is_left(loaded):
    script = [10, 11, 12, NEWLINE] * 40
    reply = say(loaded, script, Arm("remaining-budget", "40", 40))
    notes = re.findall(
        r"\n\(I have used (\d+) tokens, and (\d+) are left\.\)\n", reply.text
    )
    # At the first line's end after each quarter.
    used = [int(note[0]) for note in notes]
    assert [10 * (u // 10) for u in used] == [10, 20, 30]
    assert [int(left) for _, left in notes] == [40 - u for u in used]
    assert reply.thinking_tokens == 40
    assert reply.text.count("**Final Answer**") == 1
    assert reply.forced_tokens == len(reply.tokens) - 40 - reply.answer_tokens


def test_paragraphs_end_at_blank_lines_or_at_lines_where_there_are_none():
    def ends(*texts: str) -> list[str]:
        paragraphs = Paragraphs()
        return [text for text in texts if paragraphs.ended_with(text)]

    assert ends("a", ".\n", "b", "\n", "c") == [".\n", "\n"]
    assert ends("a", ".\n\n", "b\n", "c", "\n", "\n", "d") == [".\n\n", "\n"]


def test_a_trial_answer_ends_with_its_box(loaded):
    trial = TrialSampler(loaded[1], boxes=True)
    answer, close = encode(loaded, "3{4}"), encode(loaded, "} so")
    for token in [*answer, *close]:
        trial(logprobs({token: 0.0}))
    assert trial.answer == "3{4}"
    assert len(trial.tokens) == len(answer) + 1
    assert trial.confidence == pytest.approx(1, abs=1e-3)
    sure = TrialSampler(loaded[1], boxes=False)
    sure(logprobs({10: 0.0, 11: 0.0}))
    sure(logprobs({12: 0.0}))
    # The geometric mean of 1/2 and 1.
    assert sure.confidence == pytest.approx(0.5**0.5, abs=1e-3)


@pytest.mark.parametrize("strategy", ["deer", "convergence"])
def test_early_exits_keep_the_thinking_they_leave(loaded, tmp_path, strategy):
    records = run(loaded, tmp_path / "run", strategies=("full", strategy))
    for i in range(4):
        full, early = records[f"full/{i}-0"], records[f"{strategy}@24/{i}-0"]
        assert early["thinking_tokens"] <= 24
        if early["closed_by"] == "model":
            assert early["reply"] == full["reply"]
        else:
            thought = early["reply"].split("\n**Final Answer**")[0].rstrip("\n")
            assert full["reply"].startswith(thought)
            assert early["forced_tokens"] > 0
        assert (early["probe_tokens"] > 0) is (len(early["trial_answers"]) > 0)


def test_a_sure_trial_answer_ends_thinking(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(exits, "SAME", 1)
    records = run(loaded, tmp_path / "run", strategies=("convergence",))
    early = [r for r in records.values() if r["strategy"] == "convergence"]
    left = [r for r in early if r["closed_by"] == "exit"]
    assert left
    for record in left:
        assert len(record["trial_answers"]) >= 1
        assert record["probe_tokens"] > 0
        assert record["thinking_tokens"] < 24


def test_the_majority_is_the_first_of_the_commonest_answers(loaded):
    """Three replies to each of two questions, of which the second agrees on nothing."""
    model, tokenizer, _ = loaded
    maker = Maker(model, tokenizer, find_markers(tokenizer), 4, {"max_tokens": 30})
    requests = [Request(PROMPT, seed) for seed in (1, 2)]
    alone = dict(maker.outcomes(requests, predictor=False, temp=1.0))
    said = {}

    def read(which: int, answer: str | None) -> str | None:
        said[which] = said.get(which, 0) + 1
        return ("bac" if which else "baa")[said[which] - 1]

    found = dict(vote(maker, requests, 3, read, predictor=False, temp=1.0))
    for which, winner in ((0, 1), (1, 0)):
        outcome = found[which]
        replies = outcome.notes["replies"]
        assert len(set(replies)) == 3
        assert outcome.text == replies[winner]
        # The first has the draws of every other strategy.
        assert replies[0] == alone[which].text
        assert outcome.counts.total == 3 * 30


def test_a_run_of_rivals_that_was_stopped_comes_to_the_same(loaded, tmp_path):
    options = dict(strategies=("full", "deer", "majority"))
    want = run(loaded, tmp_path / "whole", **options)

    class Stop(Exception):
        pass

    def stop(progress) -> None:
        if progress.made == 3:
            raise Stop

    for _ in range(30):
        try:
            run(loaded, tmp_path / "run", progress=stop, **options)
            break
        except Stop:
            pass
    found = run(loaded, tmp_path / "run", batch_size=1, **options)
    assert found.keys() == want.keys()
    for name, record in found.items():
        assert {**record, "seconds": 0} == {**want[name], "seconds": 0}
    majority = [r for r in found.values() if r["strategy"] == "majority"]
    assert all(len(r["votes"]) == 3 for r in majority)
    assert all(r["thinking_tokens"] <= 24 for r in majority)


def test_without_an_opening_marker_answers_behind_a_cut_are_answers(loaded, tmp_path):
    options = dict(strategies=("budget-forcing", "deer", "convergence", "anytime"))
    records = run(loaded, tmp_path / "run", thinking_start="", **options)
    cut = [r for r in records.values() if r["closed_by"] in ("budget", "exit")]
    assert {r["strategy"] for r in cut} == set(options["strategies"])
    for record in cut:
        assert record["thinking_tokens"] <= 24
        assert record["answer_tokens"] > 0
        assert "never closed" not in (record["grading_problem"] or "")


def test_an_answer_behind_an_exit_is_drawn_as_behind_a_cut(loaded, tmp_path):
    options = dict(strategies=("budget-forcing", "deer"), temp=1.0, seed=5)
    records = run(loaded, tmp_path / "run", **options)
    same = 0
    for name, record in records.items():
        if record["strategy"] == "deer" and record["closed_by"] == "budget":
            other = records[name.replace("deer", "budget-forcing")]
            behind = [r["reply"].partition("</think>")[2] for r in (record, other)]
            assert behind[0] == behind[1]
            same += 1
    assert same


def test_a_vote_without_a_close_is_read_without_the_box_of_the_marker(loaded, tmp_path):
    records = run(
        loaded,
        tmp_path / "run",
        strategies=("majority",),
        thinking_start="",
        thinking_end="\\boxed{",
    )
    votes = [r for r in records.values() if r["strategy"] == "majority"]
    assert all(r["closed_by"] == "budget" for r in votes)
