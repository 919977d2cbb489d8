"""Runs as m1's authors make them, and the tags of AdaCtrl in an evaluation."""

from dataclasses import replace

import pytest

from formats.chatml import M1
from mlx_budget import batch_generate
from mlx_budget.engine.closing import closing_of, wind_down
from mlx_budget.engine.m1 import CUT
from mlx_budget.engine.markers import find_markers, markers_of
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import ThinkingBudget
from mlx_budget.evaluate.arms import Arm, parse_budgets
from mlx_budget.evaluate.grading import grade
from mlx_budget.evaluate.metrics import measure_arm
from mlx_budget.evaluate.options import EvaluateOptions
from mlx_budget.evaluate.run import evaluate
from mlx_budget.evaluate.strategies import WAITS
from mlx_budget.evaluate.summary import markdown, summarize
from mlx_budget.evaluate.tasks import Problem, Task
from mlx_budget.planning.plans import plan_from
from scripted import ScriptedBatch

ASKED = ThinkingBudget(start=M1.start, end=M1.end)
OPENING = "<|im_start|>think\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return M1.tokenizer(tmp_path_factory.mktemp("tokenizer"))


def say(tokenizer, script: list[int], arm: Arm, asked: ThinkingBudget = ASKED):
    """The reply of a model that wants to say a script and then the end."""
    prompt = encode_chat(tokenizer, "Which is it?\n\nA. red\nB. blue")
    script = [*script, *[tokenizer.eos_token_id] * 40]
    model = ScriptedBatch(script, len(prompt), len(tokenizer.get_vocab()))
    options = arm.generation(False, asked)
    (reply,) = batch_generate(
        model, tokenizer, [prompt], max_tokens=200, **options
    ).replies
    return reply


def ids(tokenizer, *texts: str) -> list[int]:
    return [
        token
        for text in texts
        for token in tokenizer.encode(text, add_special_tokens=False)
    ]


@pytest.mark.parametrize("budget", [4, 20])
def test_budget_forcing_cuts_m1_with_its_own_words(tokenizer, budget):
    opening, thought = ids(tokenizer, OPENING), ids(tokenizer, " so") * 40
    arm = Arm("budget-forcing", str(budget), budget)
    cut = len(ids(tokenizer, "\n", M1.end, "\nFinal Answer:"))
    # The newline behind the marker is thinking.
    head = [*opening, *thought[: budget - 1]]
    reply = say(tokenizer, [*head, *thought[:cut], *ids(tokenizer, " B.")], arm)
    assert reply.text == tokenizer.decode(head) + f"{CUT} B."
    assert (reply.thinking_tokens, reply.closed_by) == (budget, "budget")
    assert reply.answer == "Final Answer: B."
    assert grade(reply.answer, "B", True).correct
    assert not grade(reply.answer, "A", True).correct


def test_all_published_budgets_can_be_asked_for():
    budgets = parse_budgets("128,256,512,1024,2048,4096,8192")
    options = EvaluateOptions(
        strategies=("budget-forcing", "wait", *(f"wait-{n}" for n in WAITS)),
        budgets=budgets,
        thinking=ASKED,
        max_tokens=10_240,
    )
    assert [b.tokens for b in options.budgets] == [2**n for n in range(7, 14)]
    with pytest.raises(
        ValueError, match="8,192, behind which there would be no answer"
    ):
        EvaluateOptions(strategies=("budget-forcing",), budgets=budgets)


def test_wait_takes_the_place_of_m1s_answer_marker(tokenizer):
    begun, end = ids(tokenizer, OPENING, " so"), ids(tokenizer, M1.end)
    waits = ids(tokenizer, "Wait")
    filler = ids(tokenizer, " so") * (len(waits) - 1)  # in the places of the word
    script = [*begun, end[0], *filler, *ids(tokenizer, " so") * 30, *end]
    for name in ("wait", "wait-1", "wait-8"):
        reply = say(tokenizer, script, Arm(name, "12", 12))
        assert reply.tokens[len(begun) : len(begun) + len(waits)] == waits
        assert reply.text.count("Wait") == 1


@pytest.mark.parametrize("times", WAITS)
def test_it_waits_so_often_and_is_cut_at_the_budget(tokenizer, times):
    begun, stop = ids(tokenizer, OPENING), ids(tokenizer, M1.end)[0]
    wait = len(ids(tokenizer, "Wait"))
    # Whatever it would do, it ends its thinking or its reply.
    script = [*begun, *[stop, tokenizer.eos_token_id] * 40]
    reply = say(tokenizer, script, Arm(f"wait-{times}", "50", 50))
    assert reply.text.count("Wait") == times
    # What was put in counts toward the budget.
    budget = len(begun) - 1 + times * wait + 5
    thought = [*script[: len(begun) + times * wait], *ids(tokenizer, " so") * 90]
    reply = say(tokenizer, thought, Arm(f"wait-{times}", str(budget), budget))
    assert reply.text.count("Wait") == times
    used = reply.thinking_tokens + times * wait
    assert (used, reply.closed_by) == (budget, "budget")
    assert CUT in reply.text


def test_m1_is_known_by_its_template_or_its_markers(tokenizer):
    markers = find_markers(tokenizer, M1.start, M1.end)
    assert wind_down(tokenizer, markers).text == CUT
    assert closing_of(tokenizer, markers, [5], "auto").begins_answer
    assert markers_of(tokenizer, ThinkingBudget()) is None
    plain = tokenizer.chat_template
    try:
        tokenizer.chat_template = plain + f"{{# {M1.start} {M1.end} #}}"
        found = markers_of(tokenizer, ThinkingBudget())
        assert (found.start, found.end) == (M1.start, M1.end)
    finally:
        tokenizer.chat_template = plain


TASK = Task("sums", (Problem("0", "What is 14 + 7?", "21", False),), "")


def test_easy_and_hard_begin_replies_and_are_not_the_models_own(loaded, tmp_path):
    records = evaluate(
        *loaded,
        TASK,
        tmp_path / "run",
        strategies=("easy", "hard", "no-thinking"),
        budgets=(),
        max_tokens=20,
    )
    by_arm = {record["strategy"]: record for record in records}
    for arm in ("easy", "hard"):
        tag = f"[{arm.title()}]"
        assert by_arm[arm]["reply"].startswith(tag)
        assert (by_arm[arm]["tag"], by_arm[arm]["tag_given"]) == (tag, True)
        assert measure_arm([by_arm[arm]])["tags"] == {"[Easy]": 0, "[Hard]": 0}
    assert "tag" not in by_arm["no-thinking"]
    assert "own tags" not in markdown(summarize(records))


def test_a_prefix_that_was_asked_for_begins_the_replies_of_all_arms(loaded, tmp_path):
    parts = [{"question": "What is 14?", "credits": 50}] * 2
    problem = replace(TASK.problems[0], plan=plan_from({"parts": parts}))
    records = evaluate(
        *loaded,
        replace(TASK, problems=(problem,)),
        tmp_path / "run",
        strategies=("full", "guidance", "budget-forcing", "anytime", "plan-guided"),
        budgets=parse_budgets("12"),
        max_tokens=60,
        reply_prefix="[Hard]",
    )
    assert len(records) == 5
    for record in records:
        assert record["reply"].startswith("[Hard]")
        assert record["reply"].count("[Hard]") == 1
        assert record["tag_given"] is True


def test_a_prefix_without_a_tag_gives_none(loaded, tmp_path):
    (record,) = evaluate(
        *loaded,
        TASK,
        tmp_path / "run",
        strategies=("full",),
        max_tokens=9,
        reply_prefix="[Easy",
    )
    assert record.get("tag_given") in (None, False)


def test_tags_that_replies_choose_are_counted(loaded, tmp_path):
    records = evaluate(
        *loaded,
        TASK,
        tmp_path / "run",
        strategies=("no-thinking",),
        budgets=(),
        max_tokens=9,
    )
    own = [
        {**records[0], "problem": str(i), "tag": tag, "tag_given": False}
        for i, tag in enumerate(["[Easy]", "[Hard]", "[Easy]"])
    ]
    assert measure_arm(own)["tags"] == {"[Easy]": 2, "[Hard]": 1}
    said = "Of 3 replies of no-thinking, by their own tags: [Easy] 2, [Hard] 1."
    assert said in markdown(summarize(own))
