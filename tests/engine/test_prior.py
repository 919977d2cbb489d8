"""Guidance without a predictor: any model that thinks, and what its replies teach."""

import os
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlx_budget import make_budget_sampler, stream_generate
from mlx_budget.engine.markers import find_markers
from mlx_budget.engine.priors import LearnedPrior, prior_for
from mlx_budget.engine.recorder import HiddenStateRecorder
from mlx_budget.method.predictor import ReplyProgress
from scripted import ScriptedModel

START, END, NEWLINE = 423, 424, 5


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_BUDGET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def newline_of(tokenizer) -> int:
    (token,) = tokenizer.encode("\n", add_special_tokens=False)
    return token


def said(loaded, script: list[int], **options):
    """The last response of a model that wants to say a script."""
    tokenizer = loaded[1]
    prompt = [5, START]
    model = ScriptedModel(script, len(prompt))
    *_, last = stream_generate(model, tokenizer, prompt, **options)
    return last


def test_a_model_without_a_predictor_is_guided(loaded, cases):
    case = next(iter(cases.values()))
    model, tokenizer, _ = loaded
    responses = list(
        stream_generate(model, tokenizer, case["prompt_ids"], thinking_budget=12)
    )
    assert responses[-1].reply.guided_tokens > 0
    assert responses[-1].thinking_tokens <= 13


def test_it_reads_no_hidden_states(loaded, monkeypatch):
    def never(self, model):
        raise ValueError("no states here")

    monkeypatch.setattr(HiddenStateRecorder, "_watch_states", never)
    model, tokenizer, predictor = loaded
    options = {"prompt": [5, START], "thinking_budget": 20}
    with pytest.raises(ValueError, match="no states here"):
        make_budget_sampler(model, tokenizer, predictor, **options)
    make_budget_sampler(model, tokenizer, **options).close()


def test_the_closer_the_budget_the_likelier_the_close(loaded):
    tokenizer = loaded[1]
    prior = prior_for(tokenizer, find_markers(tokenizer))
    prior.check_vocabulary(448)

    def odds(used: int) -> float:
        outputs = prior.outputs(None, ReplyProgress(used, 100))
        weights = np.array(prior.log_weights(outputs, max(1, 100 - used)))[0]
        return weights[END] - weights[10]

    found = [odds(used) for used in (0, 40, 70, 95)]
    assert found == sorted(found) and found[0] < 0.2 and found[-1] > 3


def test_replies_without_a_budget_are_counted_and_kept(loaded, cache):
    tokenizer = loaded[1]
    newline = newline_of(tokenizer)
    learned = LearnedPrior("some/model", tokenizer, find_markers(tokenizer))
    assert not learned.predictor().knows_lengths
    script = [10, 11, newline, 12, 13, newline, END, 14, 15]
    assert learned.learn(said(loaded, script).reply)
    counts = learned.counts()
    assert counts.tokens.tolist() == sorted([10, 12, END])
    # 6 tokens of thinking and the marker from the first, 3 and the marker from 12.
    lengths = dict(
        zip(counts.tokens, np.expm1(counts.sums[1].sum(axis=1)), strict=True)
    )
    assert lengths == {
        10: pytest.approx(7),
        12: pytest.approx(4),
        END: pytest.approx(1),
    }
    assert learned.predictor().knows_lengths

    again = LearnedPrior("some/model", tokenizer, find_markers(tokenizer))
    assert again.learn(said(loaded, script).reply)
    assert learned.counts().number == 6
    other = LearnedPrior("other/model", tokenizer, find_markers(tokenizer))
    assert other.counts().number == 0
    (file,) = (cache / "priors").iterdir()
    assert file == learned.file
    assert set(mx.load(str(file))) == {"tokens", "sums"}


def test_what_a_budget_or_a_limit_has_cut_teaches_nothing(loaded, cache):
    tokenizer = loaded[1]
    learned = LearnedPrior("some/model", tokenizer, find_markers(tokenizer))
    script = [10, 11, newline_of(tokenizer), 12, END, 14]
    for options in (
        {"thinking_budget": 3},
        {"thinking_budget": 50},
        {"max_tokens": 3},
        {"min_thinking_tokens": 2},
    ):
        assert not learned.learn(said(loaded, script, **options).reply)
    assert not learned.file.exists()


def test_programs_that_learn_at_once_lose_nothing(loaded, cache, converted):
    code = (
        "import sys; from mlx_lm import load\n"
        "import numpy as np\n"
        "from mlx_budget.engine.markers import find_markers\n"
        "from mlx_budget.engine.priors import LearnedPrior\n"
        "class Reply:\n"
        "    def line_lengths(self): return [(3, 0, 9)]\n"
        f"_, tokenizer = load({str(converted)!r})\n"
        "learned = LearnedPrior('m', tokenizer, find_markers(tokenizer))\n"
        "for _ in range(20): learned.learn(Reply())\n"
    )
    env = {**os.environ, "MLX_BUDGET_CACHE": str(cache)}
    running = [subprocess.Popen([sys.executable, "-c", code], env=env) for _ in "ab"]
    assert [p.wait() for p in running] == [0, 0]
    tokenizer = loaded[1]
    learned = LearnedPrior("m", tokenizer, find_markers(tokenizer))
    assert learned.counts().number == 40


def test_a_damaged_file_is_named(loaded, cache):
    tokenizer = loaded[1]
    learned = LearnedPrior("some/model", tokenizer, find_markers(tokenizer))
    learned.file.parent.mkdir(parents=True)
    learned.file.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=str(learned.file)):
        learned.predictor()


def test_without_a_budget_what_was_seen_is_all_that_counts(loaded, cache):
    """A prior in units of a budget says nothing of lengths where there is none."""
    tokenizer = loaded[1]
    newline = newline_of(tokenizer)
    learned = LearnedPrior("some/model", tokenizer, find_markers(tokenizer))
    thought = [10, *([11] * 40), newline, END, 14]
    for _ in range(3):
        assert learned.learn(said(loaded, thought).reply)
    mean, _ = learned.predictor().moments(None)
    # 42 tokens and the marker; 20 lengths of 0 would have made it e^0.5.
    assert mean.max() == pytest.approx(np.log(44), abs=0.3)
