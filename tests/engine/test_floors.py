"""Budgets from below: floors that are kept, ranges and budgets that are used."""

from collections.abc import Iterable

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from scipy import stats

from mlx_budget import Predictor, batch_generate, make_budget_sampler, stream_generate
from mlx_budget.engine.budgets import (
    ABOUT_FROM,
    ABOUT_LINE,
    ABOUT_TO,
    BudgetRange,
    check_budget,
)
from mlx_budget.engine.guide import window_after
from mlx_budget.engine.settings import ThinkingBudget
from mlx_budget.method.guidance import Window, as_window, log_event_weights
from mlx_budget.method.predictor import Outputs, ReplyProgress
from scripted import ScriptedModel, indifferent_predictor

NEWLINE, START, END, EOS = 201, 423, 424, 2
PROMPT = [5, START]


def say(tokenizer, script: list[int], predictor=False, **options) -> list[int]:
    """Tokens that come out when the model wants to say ``script``.

    Where it is kept from a token it says 0.
    """
    model = ScriptedModel(script, len(PROMPT))
    sampler = make_budget_sampler(model, tokenizer, predictor, prompt=PROMPT, **options)
    responses = mlx_lm.stream_generate(
        model, tokenizer, PROMPT, sampler=sampler, max_tokens=40
    )
    return [r.token for r in responses]


@pytest.mark.parametrize("predictor", [None, False, indifferent_predictor()])
def test_the_model_cannot_close_before_the_floor(loaded, predictor):
    for script in ([10, END, 11, END, 12, END], [10, NEWLINE, END, END, END, END]):
        tokens = say(loaded[1], script, predictor, min_thinking_tokens=5)
        want = [0 if token == END else token for token in script[:5]]
        assert END not in tokens[:5] and tokens[5] == END
        if predictor is not None:  # a prior has likings of its own
            assert tokens[:5] == want


def test_the_model_cannot_end_its_reply_before_the_floor(loaded):
    tokens = say(loaded[1], [10, EOS, EOS, 11, EOS], min_thinking_tokens=3)
    assert tokens == [10, 0, 0, 11, EOS]
    tokens = say(
        loaded[1], [10, EOS, EOS, EOS], min_thinking_tokens=3, answer_anyway=True
    )
    assert tokens[:4] == [10, 0, 0, END]


def test_a_model_that_thinks_long_enough_is_left_alone(loaded):
    script = [10, 11, NEWLINE, END, 12]
    for floor in (0, 1, 3):
        assert say(loaded[1], script, min_thinking_tokens=floor) == [*script, EOS]
    assert say(loaded[1], script, min_thinking_tokens=4)[3] != END


def test_a_reply_that_does_not_think_has_no_floor(loaded):
    model = ScriptedModel([10, 11], 1)
    sampler = make_budget_sampler(
        model, loaded[1], False, prompt=[5], min_thinking_tokens=9
    )
    responses = mlx_lm.stream_generate(model, loaded[1], [5], sampler=sampler)
    assert [r.token for r in responses] == [10, 11, EOS]


def test_a_tool_call_ends_thinking_before_the_floor(loaded):
    tokenizer = loaded[1]
    call = tokenizer.encode("<tool_call>", add_special_tokens=False)
    tokens = say(tokenizer, [10, NEWLINE, *call, 11], min_thinking_tokens=30)
    assert tokens == [10, NEWLINE, *call, 11, EOS]


def test_a_block_that_is_opened_again_has_no_floor(loaded):
    tokenizer = loaded[1]
    call = tokenizer.encode("<tool_call>", add_special_tokens=False)
    call_end = tokenizer.encode("</tool_call>", add_special_tokens=False)
    for first in ([10, 11, END], [NEWLINE, *call, *call_end]):
        script = [*first, START, 12, END, 13]
        tokens = say(tokenizer, script, min_thinking_tokens=2)
        assert tokens == [*script, EOS]


def test_a_marker_of_several_tokens_does_not_begin_before_the_floor(loaded):
    tokenizer = loaded[1]
    options = {"thinking_start": "", "thinking_end": "So 21."}
    end = tokenizer.encode("So 21.", add_special_tokens=False)
    script = [10, *end, *end]
    tokens = say(tokenizer, script, min_thinking_tokens=3, **options)
    assert tokens[:3] == [10, 0, end[1]]
    # Begun in other tokens it does not go on.
    other = tokenizer.encode("S", add_special_tokens=False)
    rest = tokenizer.encode("o 21.", add_special_tokens=False)
    tokens = say(tokenizer, [*other, *rest], min_thinking_tokens=3, **options)
    assert tokens[:2] == [*other, 0]


def test_a_range_has_a_floor_and_a_hard_stop(loaded):
    for given in ((4, 6), [4, 6], "4-6", BudgetRange(4, 6)):
        options = {"thinking_budget": given, "hard_stop": 1.5}
        tokens = say(loaded[1], [10, END, END, END, END], **options)
        assert tokens[:5] == [10, 0, 0, 0, END]
        tokens = say(loaded[1], [10, 11, 12, 13, 14, NEWLINE, 16], **options)
        assert tokens[:7] == [10, 11, 12, 13, 14, NEWLINE, END]
        tokens = say(loaded[1], list(range(10, 30)), **options)
        assert tokens[:10] == [*range(10, 19), END]


def test_guidance_closes_at_the_upper_bound_and_the_hard_stop_behind_it(loaded):
    """A predictor that trusts nothing leaves the choice to the model."""
    options = {"thinking_budget": (2, 4), "hard_stop": 2.0}
    script = [10, 11, 12, NEWLINE, END]
    want = [*script, EOS]
    assert say(loaded[1], script, indifferent_predictor(), **options) == want
    script = [10, 11, 12, NEWLINE, 13, NEWLINE, 14]
    tokens = say(loaded[1], script, indifferent_predictor(), **options)
    assert tokens[:7] == [*script[:6], END]
    # Where nothing guides, it is cut there.
    assert say(loaded[1], script, **options)[:5] == [*script[:4], END]


def test_both_bounds_are_counted_down():
    budget = ThinkingBudget((8, 10))
    found = [window_after(budget, used) for used in (0, 6, 7, 8, 9, 10, 30)]
    # The closing marker counts: behind 8 tokens it is the ninth, behind 10 the 11th.
    assert [(w.least, w.most) for w in found] == [
        (9, 11),
        (3, 5),
        (2, 4),
        (0, 3),
        (0, 2),
        (0, 1),
        (0, 1),
    ]


def test_a_budget_of_at_most_has_the_published_window():
    for used in range(12):
        assert window_after(ThinkingBudget(9), used) == Window(max(9 - used, 1))


def test_a_floor_alone_has_no_ceiling():
    budget = ThinkingBudget(least=5)
    assert window_after(budget, 3) == Window(least=3)
    assert window_after(budget, 5) == Window()


def test_a_range_of_one_length_can_be_met():
    budget = ThinkingBudget((9, 9))
    assert window_after(budget, 0) == Window(10, 10)
    assert window_after(budget, 8) == Window(2, 2)
    assert window_after(budget, 9) == Window(1)


def test_about_is_a_range_just_below_the_budget():
    budget = ThinkingBudget(1000, mode="about")
    assert budget.bounds == (1000 * ABOUT_FROM, 1000 * ABOUT_TO)
    assert budget.limit == 1100
    # There is room for the end of a line.
    assert ThinkingBudget(30, mode="about").bounds[0] == 30 - ABOUT_LINE
    # A range is its own window, and a floor moves the lower bound up.
    assert ThinkingBudget((5, 9), mode="about").bounds == (5, 9)
    assert ThinkingBudget(1000, mode="about", least=990).bounds == (990, 990)
    for tokens in (1, 2, 3, 7):
        low, high = ThinkingBudget(tokens, mode="about").bounds
        assert 0 <= low <= high <= tokens and high >= 1
    assert ThinkingBudget(0, mode="about").bounds == (0, 0)
    assert ThinkingBudget(None, mode="about").is_free


def test_an_automatic_budget_is_used_and_not_below_its_floor():
    budget = ThinkingBudget("auto:0.5", mode="about", least=30)
    assert budget.bounds == (30, None)
    assert budget.for_length(200).bounds == ThinkingBudget(100, mode="about").bounds
    assert budget.for_length(40).tokens == 30


def test_a_ceiling_lowers_ranges_and_floors():
    assert ThinkingBudget((80, 100)).at_most(90).tokens == BudgetRange(80, 90)
    assert ThinkingBudget((80, 100)).at_most(50).tokens == BudgetRange(50, 50)
    assert ThinkingBudget((80, 100)).at_most(0).tokens == 0
    assert ThinkingBudget(least=80).at_most(50) == ThinkingBudget(50, least=50)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tokens": (9, 5)}, "must go from 0 tokens or more up to .* not from 9 to 5"),
        ({"tokens": (-1, 5)}, "not from -1 to 5"),
        ({"tokens": (0, 0)}, "not from 0 to 0"),
        ({"tokens": (1, 2**40)}, "at most 2,147,483,647"),
        ({"tokens": (1, 2, 3)}, "two integer numbers of tokens, low and high"),
        ({"tokens": (1, 2.5)}, "two integer numbers of tokens, low and high"),
        ({"tokens": (True, 2)}, "two integer numbers of tokens, low and high"),
        ({"tokens": "5-"}, "a range such as 800-1000"),
        ({"tokens": 5, "least": 6}, "is 6, above the thinking budget of 5: lower it"),
        ({"tokens": 0, "least": 1}, "is 1, above the thinking budget of 0"),
        ({"tokens": (1, 5), "least": 6}, "above the thinking budget of 5"),
        ({"least": -1}, "min_thinking_tokens must be 0 to 2,147,483,647, not -1"),
        ({"least": 1.5}, "min_thinking_tokens must be an integer, not 1.5"),
        ({"mode": "exactly"}, "budget_mode must be one of at-most, about, not 'exac"),
        ({"mode": None}, "budget_mode must be one of at-most, about, not None"),
    ],
)
def test_bounds_that_cannot_be_kept_are_refused(options, line):
    with pytest.raises(ValueError, match=line):
        ThinkingBudget(**options)


def test_numpys_numbers_are_numbers():
    assert check_budget(np.array([5, 9])) == BudgetRange(5, 9)
    assert ThinkingBudget(least=np.int64(4)).least == 4


def test_a_limit_that_leaves_no_room_for_the_floor_is_refused(loaded):
    model, tokenizer, _ = loaded
    options = {"predictor": False, "max_tokens": 30}
    for bounds in ({"min_thinking_tokens": 30}, {"thinking_budget": (30, 90)}):
        line = "max_tokens is 30, and at least 30 tokens of thinking are asked for"
        with pytest.raises(ValueError, match=line):
            next(stream_generate(model, tokenizer, PROMPT, **bounds, **options))
        bounds = {k: [v] if k == "thinking_budget" else v for k, v in bounds.items()}
        with pytest.raises(ValueError, match=line):
            batch_generate(model, tokenizer, [PROMPT], **bounds, **options)
    # What a budget comes to by its mode is cut off as the budget is.
    responses = stream_generate(
        model, tokenizer, PROMPT, thinking_budget=90, budget_mode="about", **options
    )
    assert len(list(responses)) <= 30


def test_a_floor_makes_room_for_itself():
    assert ThinkingBudget(least=20_000).max_tokens > 30_000
    assert ThinkingBudget((500, 1000)).max_tokens == ThinkingBudget(1000).max_tokens


def test_drafts_and_samplers_do_not_go_with_a_floor(loaded):
    model, tokenizer, _ = loaded
    for other in ({"draft_model": model}, {"sampler": lambda x: x}):
        with pytest.raises(ValueError, match="thinking budget"):
            next(
                stream_generate(
                    model, tokenizer, PROMPT, min_thinking_tokens=9, **other
                )
            )


def test_no_reply_of_a_batch_is_shorter_than_its_own_floor(loaded, cases):
    prompts = [case["prompt_ids"] for case in cases.values()][:5]
    ranges = [(5 * i, 5 * i + 4) for i in range(len(prompts))]
    options = {
        "predictor": loaded[2],
        "thinking_budget": ranges,
        "temp": 1.0,
        "seed": list(range(len(prompts))),
        "max_tokens": 40,
    }
    together = batch_generate(*loaded[:2], prompts, batch_size=3, **options)
    assert [r.thinking_budget for r in together.replies] == [h for _, h in ranges]
    for reply, (low, high) in zip(together.replies, ranges, strict=True):
        assert low <= reply.thinking_tokens <= 1.1 * high
    for i in (1, 4):
        alone = list(
            stream_generate(
                *loaded[:2],
                prompts[i],
                predictor=loaded[2],
                thinking_budget=ranges[i],
                temp=1.0,
                seed=i,
                max_tokens=40,
            )
        )
        assert alone[-1].reply.tokens == together.replies[i].tokens


class Lines(nn.Module):
    """A model that thinks in lines of 2, 3 and 6 tokens, whose order is chance.

    It closes its thinking at one line end in five.
    """

    lines = ((10, NEWLINE), (11, 13, NEWLINE), (12, 14, 15, 16, 17, NEWLINE))
    chances = (0.35, 0.3, 0.15)
    close = 0.2

    def __init__(self, vocab_size: int = 448):
        super().__init__()
        scripted = ScriptedModel([], 1, vocab_size)
        self.model = scripted.model
        table = np.full((vocab_size, vocab_size), -np.inf, np.float32)
        table[:, EOS] = 0
        for start in (START, NEWLINE):
            table[start] = -np.inf
            table[start, END] = np.log(self.close)
            for line, chance in zip(self.lines, self.chances, strict=True):
                table[start, line[0]] = np.log(chance)
        for line in self.lines:
            for token, after in zip(line, line[1:], strict=False):
                table[token] = -np.inf
                table[token, after] = 0
        self._table = mx.array(table)

    @property
    def layers(self) -> list[nn.Module]:
        return self.model.layers

    def __call__(self, inputs: mx.array, cache=None) -> mx.array:
        self.model(inputs, cache)
        return self._table[inputs]

    def law(self, longest: int) -> dict[int, np.ndarray]:
        """Of each first token, the chances of 0, 1, ... tokens still to come."""
        law = {token: np.zeros(longest + 1) for token in (END, 10, 11, 12)}
        law[END][1] = 1
        for n in range(2, longest + 1):
            for line in self.lines:
                if (after := n - len(line)) >= 1:
                    law[line[0]][n] = self._whole(law)[after]
        return law

    def whole_law(self, longest: int) -> np.ndarray:
        return self._whole(self.law(longest))

    def _whole(self, law: dict[int, np.ndarray]) -> np.ndarray:
        chosen = zip(self.lines, self.chances, strict=True)
        return self.close * law[END] + sum(c * law[line[0]] for line, c in chosen)


class Exact(Predictor):
    """Knows the law of `Lines`."""

    reads_states = False
    longest = 400

    def __init__(self, model: Lines, vocab_size: int = 448):
        self._cdf = np.zeros((self.longest + 1, vocab_size))
        for token, law in model.law(self.longest).items():
            self._cdf[:, token] = np.minimum(np.cumsum(law), 1)

    @property
    def known_tokens(self) -> int:
        return self._cdf.shape[1]

    def check_vocabulary(self, vocab_size: int) -> None:
        pass

    def outputs(
        self,
        encoding: mx.array | None,
        progress: ReplyProgress,
        tokens: mx.array | None = None,
    ) -> Outputs:
        return mx.zeros((1, 448)), mx.zeros((1, 448))

    def log_weights(self, outputs: Outputs, window: Window | float) -> mx.array:
        window = as_window(window)
        ends = (min(window.most, self.longest), max(window.least - 1, 0))
        with np.errstate(divide="ignore"):
            logs = np.log(self._cdf[[int(n) for n in ends]]).astype(np.float32)
        return log_event_weights(
            mx.array(logs[:1]), mx.array(logs[1:]), mx.array(window.has_floor)
        )


def lengths(loaded, n: int, **options) -> Iterable[int]:
    """Thinking tokens of so many replies of `Lines`, exactly guided."""
    model = Lines()
    replies = batch_generate(
        model,
        loaded[1],
        [PROMPT] * n,
        predictor=Exact(model),
        temp=1.0,
        seed=list(range(n)),
        batch_size=n,
        hard_stop=None,
        **options,
    ).replies
    assert {r.closed_by for r in replies} == {"model"}
    return [r.thinking_tokens for r in replies]


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"thinking_budget": 9}, 0, 8),
        ({"thinking_budget": "9-13"}, 9, 13),
        ({"min_thinking_tokens": 12}, 12, 300),
    ],
)
def test_replies_have_the_models_own_law_within_the_window(loaded, options, low, high):
    """Through the whole engine: a false alarm is one in 10,000 for other seeds."""
    n = 200
    found = lengths(loaded, n, **options)
    assert low <= min(found) and max(found) <= high
    # Without the marker, which a length in the model's law counts.
    law = Lines().whole_law(Exact.longest)[1:]
    law = np.where((np.arange(len(law)) >= low) & (np.arange(len(law)) <= high), law, 0)
    law /= law.sum()
    # Rare lengths together, so that the statistic has its law.
    often = law * n >= 5
    want = np.append(law[often], law[~often].sum())
    count = np.bincount(found, minlength=len(law))
    count = np.append(count[often], count[~often].sum())
    keep = want > 0
    assert keep.sum() >= 4
    assert stats.chisquare(count[keep], n * want[keep]).pvalue > 1e-4
