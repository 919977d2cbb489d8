"""`learn`: replies, the ladder of predictors, and the choice between them."""

import json
import math

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from mlx_budget import Predictor, load
from mlx_budget.cli import cli
from mlx_budget.demo import PROBLEMS_FILE
from mlx_budget.engine.batch import BatchReply
from mlx_budget.engine.markers import find_markers
from mlx_budget.engine.priors import prior_for
from mlx_budget.engine.settings import ModelSource, Sampling, ThinkingBudget
from mlx_budget.method.predictor import ReplyProgress
from mlx_budget.train import learn as learning
from mlx_budget.train.builtin_prompts import builtin_prompts
from mlx_budget.train.choice import Steered, choose, verdict
from mlx_budget.train.collapse import CollapsedError
from mlx_budget.train.cost import steering_cost
from mlx_budget.train.learn import learn
from mlx_budget.train.learn_options import LearnOptions
from trainings import Stopped, sum_chats, write_chats

START, END = 423, 424
PROBLEMS = PROBLEMS_FILE.read_text(encoding="utf-8").splitlines()

pytestmark = pytest.mark.usefixtures("no_picture")


def steered(name: str, *costs: float, loss: float | None = None) -> Steered:
    return Steered(name, list(costs), 1.0, 0.1, loss)


def test_what_moves_the_model_least_is_kept():
    table = steered("table", 5, 6, 7, 6, loss=0.1)
    linear = steered("linear", 1, 2, 1, 2, loss=0.9)
    assert choose([table, linear]) == "linear"


def test_where_chance_may_have_decided_the_lower_loss_does():
    table = steered("table", 2.0, 3.0, 1.0, 2.5, loss=0.9)
    linear = steered("linear", 2.5, 2.0, 2.0, 2.6, loss=0.1)
    assert choose([table, linear]) == "linear"


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (
            (1, 2, 1, 2),
            "Worth using: to keep the budget, linear moves the model by 1.5",
        ),
        ((4, 9, 2, 8), "Likely worth using, but not shown by so few"),
        ((9, 9, 9, 9), "Not worth using"),
    ],
)
def test_the_verdict_compares_with_the_prior(own, told):
    arms = {
        "linear": steered("linear", *own),
        "prior": steered("prior", 6, 7, 6, 7),
        "cut": steered("cut", 20, 20, 20, 20),
    }
    assert verdict("linear", arms).startswith(told)


def reply_of(tokens: list[int], closed_by: str) -> BatchReply:
    return BatchReply(0, "", tokens, 2, "closed", False, 0, 9, closed_by, 0, 0)


def test_a_cut_costs_what_the_model_gives_to_closing_there(loaded):
    model, tokenizer, _ = loaded
    prompt, thinking = [5, START], ThinkingBudget(2)
    reply = reply_of([10, 11, END], "budget")
    found = steering_cost(
        model, tokenizer, False, thinking, Sampling(temp=0.5), prompt, reply
    )
    logits = model(mx.array([[*prompt, 10, 11]]))[0, -1].astype(mx.float32) / 0.5
    expected = mx.logsumexp(logits) - logits[END]
    assert found == pytest.approx(expected.item(), rel=1e-4)


def test_guidance_costs_what_it_adds_to_the_tokens_that_it_chose(loaded):
    model, tokenizer, _ = loaded
    prior = prior_for(tokenizer, find_markers(tokenizer))
    prior.check_vocabulary(448)
    prompt, thinking = [5, START], ThinkingBudget(3)
    newline = tokenizer.encode("\n", add_special_tokens=False)[0]
    reply = reply_of([10, newline, 11, 12, END], "model")
    found = steering_cost(
        model, tokenizer, prior, thinking, Sampling(temp=1.0), prompt, reply
    )
    expected = 0.0
    for place, used in ((0, 0), (2, 2)):
        read = [*prompt, *reply.tokens[:place]]
        logits = model(mx.array([read]))[0, -1].astype(mx.float32)
        own = np.array(logits - mx.logsumexp(logits), np.float64)
        outputs = prior.outputs(None, ReplyProgress(used, 3))
        weights = np.array(prior.log_weights(outputs, 3 - used))[0]
        token = reply.tokens[place]
        total = math.log(np.exp(own + weights).sum())
        expected += weights[token] - total
    assert found == pytest.approx(expected, rel=1e-2) and abs(expected) > 1e-3


def test_what_is_left_to_the_model_costs_nothing(loaded):
    model, tokenizer, _ = loaded
    reply = reply_of([10, 11, END], "model")
    args = ThinkingBudget(9), Sampling(temp=1.0), [5, START], reply
    assert steering_cost(model, tokenizer, False, *args) == 0


def test_the_built_in_prompts_are_read_in_an_order_of_the_seed(monkeypatch, tmp_path):
    own = tmp_path / "prompts.jsonl"
    lines = (json.dumps({"prompt": f"own {i}"}) for i in range(8))
    own.write_text("\n".join(lines))
    monkeypatch.setattr("mlx_budget.train.builtin_prompts.BUILT_IN", own)
    gsm8k = ["theirs 0", "theirs 1", "theirs 2"]
    monkeypatch.setattr("mlx_budget.train.builtin_prompts._gsm8k", lambda: gsm8k)
    found = builtin_prompts("some/model", 3)
    assert sorted(p for p in found if p.startswith("own")) == [
        f"own {i}" for i in range(8)
    ]
    assert [found[4], found[9], found[10]] == gsm8k
    assert found == builtin_prompts("some/model", 3) != builtin_prompts("some/model", 4)
    assert "theirs 0" not in builtin_prompts("demo", 0)


@pytest.fixture
def traces(tmp_path):
    return write_chats(tmp_path / "chats.jsonl", sum_chats(40))


def learnt(converted, output, traces, **options):
    source = ModelSource(str(converted))
    given = {"sizes": "table,linear", "max_tokens": 100, **options}
    return learn(source, output, traces=str(traces), **given)


def test_replies_that_are_there_are_read_and_the_best_step_kept(
    converted, traces, tmp_path
):
    output = tmp_path / "predictor"
    found = learnt(converted, output, traces)
    assert found.is_new and found.records == 40
    assert [s.name for s in found.steered] == ["table", "linear", "prior", "cut"]
    assert found.chosen in ("table", "linear") and found.verdict.endswith(".")
    *_, predictor = load(str(converted), predictor=output)
    assert isinstance(predictor, Predictor)
    assert predictor.reads_states == (found.chosen == "linear")
    assert json.loads((output / "learned.json").read_text())["chosen"] == found.chosen
    assert {"report.json", "README.md"} <= {p.name for p in output.iterdir()}
    assert not learnt(converted, output, traces).is_new


def collapse_for(*sizes):
    """`train`, but that predictors of some sizes collapse."""
    original = learning.train

    def train(options, *args):
        if options.size in sizes:
            raise CollapsedError("It says the same whatever the hidden states are.")
        return original(options, *args)

    return train


def test_a_step_that_collapses_is_left_out_and_named(
    converted, traces, tmp_path, monkeypatch
):
    monkeypatch.setattr(learning, "train", collapse_for("linear"))
    found = learnt(converted, tmp_path / "p", traces)
    assert [s.name for s in found.steered] == ["table", "prior", "cut"]
    assert found.failed == ["linear"]
    assert found.verdict.endswith("Of no use were the hidden states to: linear.")
    assert not learnt(converted, tmp_path / "p", traces).is_new
    monkeypatch.setattr(learning, "train", collapse_for("table", "linear"))
    with pytest.raises(ValueError, match="says the same whatever the hidden states"):
        learnt(converted, tmp_path / "q", traces)


def test_a_run_that_was_stopped_goes_on(converted, traces, tmp_path, monkeypatch):
    made = []
    original = learning.train

    def watched(options, *args):
        if made == ["table"]:
            made.append("stopped")
            raise Stopped
        made.append(options.size)
        return original(options, *args)

    monkeypatch.setattr(learning, "train", watched)
    with pytest.raises(Stopped):
        learnt(converted, tmp_path / "p", traces)
    stopped = learnt(converted, tmp_path / "p", traces)
    assert made == ["table", "stopped", "linear"]
    monkeypatch.setattr(learning, "train", original)
    assert learnt(converted, tmp_path / "q", traces) == stopped


def test_more_replies_make_all_steps_anew(converted, traces, tmp_path):
    output = tmp_path / "p"
    learnt(converted, output, traces)
    write_chats(traces, sum_chats(60))
    found = learnt(converted, output, traces)
    assert found.is_new and found.records == 60


def test_a_folder_of_something_else_is_left_alone(converted, traces, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty, and holds no run of learn"):
        learnt(converted, tmp_path / "mine", traces)
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": "table,huge"}, "there is no 'huge'"),
        ({"hours": 0}, "hours must be above 0"),
        ({"num_prompts": 10}, "num_prompts must be 50 or more"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        LearnOptions(**options)


def test_too_few_replies_end_in_one_line(converted, tmp_path):
    few = write_chats(tmp_path / "few.jsonl", sum_chats(1))
    with pytest.raises(ValueError, match="1 replies in which .* too few"):
        learnt(converted, tmp_path / "p", few)


def test_from_nothing_a_model_thinks_and_a_table_is_there_first(tmp_path, monkeypatch):
    """The whole command on the built-in model; its table comes before the rest."""
    output = tmp_path / "p"
    monkeypatch.setattr("mlx_budget.train.learn.FIRST_TABLE", 6)
    # It thinks briefly about short problems.
    questions = sorted((json.loads(line)["question"] for line in PROBLEMS), key=len)
    data = tmp_path / "prompts.jsonl"
    data.write_text("\n".join(json.dumps({"prompt": q}) for q in questions[:14]))
    seen = []
    original = learning.train

    def watched(options, *args):
        seen.append((output / "predictor_config.json").exists())
        return original(options, *args)

    monkeypatch.setattr(learning, "train", watched)
    args = ["learn", "--model", "demo", "--output", str(output), "--data", str(data)]
    more = "--sizes table --batch-size 14 --held-out-prompts 2".split()
    result = CliRunner().invoke(cli, [*args, *more])
    assert result.exit_code == 0, result.stderr
    assert seen == [True]
    assert "Learnt from 14 replies" in result.stderr and "prior" in result.stderr
    again = CliRunner().invoke(cli, [*args, *more])
    assert again.exit_code == 0 and "Nothing left to do" in again.stderr
