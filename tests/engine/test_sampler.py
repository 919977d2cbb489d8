"""The budget sampler inside the stock loops of mlx-lm."""

import dataclasses
import gc

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx_lm.generate import BatchGenerator

from golden_run import golden_run
from mlx_budget import estimate, make_budget_sampler
from mlx_budget.engine.recorder import HiddenStateRecorder, active_recorder
from mlx_budget.method.encoder_predictor import EncoderPredictor
from scripted import ScriptedModel

NEWLINE, START, END, EOS = 201, 423, 424, 2
CASES = [f"p{p}_b{b}" for p in range(3) for b in (5, 40, 200, 1000)]


def stock(model, tokenizer, prompt, sampler, max_tokens=160, **kwargs) -> list[int]:
    responses = mlx_lm.stream_generate(
        model, tokenizer, prompt, sampler=sampler, max_tokens=max_tokens, **kwargs
    )
    return [r.token for r in responses]


def scripted(tokenizer, script, prompt=(5, START), max_tokens=40, **options):
    """Tokens that come out when the model wants to say ``script``."""
    prompt = list(prompt)
    model = ScriptedModel(script, len(prompt))
    sampler = make_budget_sampler(model, tokenizer, False, prompt=prompt, **options)
    return stock(model, tokenizer, prompt, sampler, max_tokens), sampler


@pytest.mark.parametrize("case_id", CASES)
def test_stock_loop_gives_the_golden_tokens(loaded, cases, case_id):
    tokens, guided_steps = golden_run(loaded, cases[case_id])
    assert tokens == cases[case_id]["guided_tokens"]
    assert guided_steps == cases[case_id]["guided_steps"]


@pytest.mark.parametrize("case_id", CASES)
def test_recorded_hidden_states_are_golden(loaded, golden, cases, case_id):
    model, _, _ = loaded
    case = cases[case_id]
    expected = golden.arrays[f"{case_id}.hidden"]
    tokens = case["prompt_ids"] + case["guided_tokens"]
    steps = case["guided_steps"][: len(expected)]
    cache = mlx_lm.models.cache.make_prompt_cache(model)
    recorder = HiddenStateRecorder.acquire(model)
    for position, token in enumerate(tokens[: len(case["prompt_ids"]) + steps[-1]]):
        model(mx.array([[token]]), cache=cache)
        states = recorder.last.states([0])
        step = position - len(case["prompt_ids"]) + 1
        if step in steps:
            want = expected[steps.index(step)]
            error = np.abs(np.array(states[0]) - want).max()
            assert error <= 1e-3 * np.abs(want).max()
    recorder.release()


def test_the_hard_stop_closes_at_the_first_newline_past_the_budget(loaded):
    script = [10, 11, NEWLINE, 12, 13, 14, NEWLINE, 15, 16, 17, 18, 19]
    tokens, _ = scripted(loaded[1], script, thinking_budget=5, hard_stop=2.0)
    assert tokens[:8] == [10, 11, NEWLINE, 12, 13, 14, NEWLINE, END]


def test_a_newline_just_at_the_budget_closes(loaded):
    script = [10, 11, 12, 13, NEWLINE, 14]
    tokens, _ = scripted(loaded[1], script, thinking_budget=5, hard_stop=2.0)
    assert tokens[:6] == [10, 11, 12, 13, NEWLINE, END]


def test_the_hard_stop_closes_at_the_limit_wherever_it_is(loaded):
    tokens, sampler = scripted(
        loaded[1], list(range(10, 40)), thinking_budget=10, hard_stop=1.1
    )
    assert tokens[:12] == [*range(10, 21), END]
    assert sampler.forced_steps == {11}


def test_the_message_comes_before_the_closing_marker(loaded):
    tokenizer = loaded[1]
    tokens, _ = scripted(
        tokenizer,
        list(range(10, 40)),
        thinking_budget=2,
        hard_stop=1,
        thinking_budget_message="So 21.\n",
    )
    message = tokenizer.encode("So 21.\n", add_special_tokens=False)
    assert tokens[: len(message) + 3] == [10, 11, *message, END]


def test_a_message_that_closes_by_itself_closes_once(loaded):
    tokenizer = loaded[1]
    tokens, _ = scripted(
        tokenizer,
        list(range(10, 40)),
        thinking_budget=2,
        hard_stop=1,
        thinking_budget_message="So 21.\n</think>\n\n",
    )
    assert tokens.count(END) == 1


def test_the_hard_stop_alone_leaves_the_layers_alone(loaded):
    model, tokenizer, predictor = loaded
    plain = [type(layer) for layer in model.layers]
    options = {"prompt": [5], "thinking_budget": 9}
    alone = make_budget_sampler(model, tokenizer, False, **options)
    assert [type(layer) for layer in model.layers] == plain
    guided = make_budget_sampler(model, tokenizer, predictor, **options)
    assert [type(layer) for layer in model.layers] != plain
    guided.close()
    alone.close()
    assert [type(layer) for layer in model.layers] == plain
    assert active_recorder(model) is None


@pytest.mark.parametrize(
    "changes", [{"model_layers": 9}, {"model_width": 32}, {"vocab_size": 100}]
)
def test_a_predictor_for_another_model_is_refused(loaded, cases, changes):
    model, tokenizer, predictor = loaded
    other = EncoderPredictor(dataclasses.replace(predictor.config, **changes))
    prompt = cases["p0_b5"]["prompt_ids"]
    sampler = make_budget_sampler(
        model, tokenizer, other, prompt=prompt, thinking_budget=9
    )
    with pytest.raises(ValueError, match="made for another model"):
        stock(model, tokenizer, prompt, sampler, max_tokens=2)
    sampler.close()
    with pytest.raises(ValueError, match="made for another model"):
        estimate(model, tokenizer, other, prompt)
    assert active_recorder(model) is None


def test_budget_0_closes_at_once(loaded):
    tokens, _ = scripted(loaded[1], [10, 11, 12, 13], thinking_budget=0)
    assert tokens == [END, 11, 12, 13, EOS]


def test_budget_0_closes_a_block_that_the_model_opens(loaded):
    script = [NEWLINE, START, 11, 12]
    tokens, _ = scripted(loaded[1], script, prompt=[5, 6], thinking_budget=0)
    assert tokens == [NEWLINE, START, END, 12, EOS]


def test_a_block_that_the_model_opens_again_is_closed_at_once(loaded):
    script = [10, 11, 12, NEWLINE, START, 14, 15]
    tokens, _ = scripted(loaded[1], script, thinking_budget=2, hard_stop=1)
    assert tokens == [10, 11, END, NEWLINE, START, END, 15, EOS]


def test_a_marker_that_the_answer_quotes_opens_nothing(loaded):
    script = [10, 11, 12, 13, START, 14, 15]
    tokens, sampler = scripted(loaded[1], script, thinking_budget=2, hard_stop=1)
    assert tokens == [10, 11, END, 13, START, 14, 15, EOS]
    assert sampler.forced_steps == {2}


def test_a_model_that_opens_blocks_for_ever_is_closed_for_good(loaded):
    script = [10, 11, *[START] * 60]
    tokens, _ = scripted(loaded[1], script, thinking_budget=2, hard_stop=1)
    assert tokens[:8] == [10, 11, END, START, END, START, END, tokens[7]]
    assert START not in tokens[7:8]
    assert END not in tokens[7:]


def test_a_model_that_closes_in_time_is_left_alone(loaded):
    script = [10, NEWLINE, END, 11, 12]
    tokens, sampler = scripted(loaded[1], script, thinking_budget=3)
    assert tokens == [*script, EOS]
    assert not sampler.forced_steps


def test_markers_of_several_tokens_are_forced_whole(loaded):
    tokenizer = loaded[1]
    end = tokenizer.encode("So 21.", add_special_tokens=False)
    tokens, _ = scripted(
        tokenizer,
        list(range(10, 30)),
        thinking_budget=3,
        hard_stop=1,
        thinking_start="",
        thinking_end="So 21.",
    )
    assert tokens[: 3 + len(end)] == [10, 11, 12, *end]


def test_a_marker_that_the_model_began_is_completed(loaded):
    tokenizer = loaded[1]
    end = tokenizer.encode("So 21.", add_special_tokens=False)
    tokens, _ = scripted(
        tokenizer,
        [10, 11, end[0], 13, 14, 15, 16, 17],
        thinking_budget=3,
        hard_stop=1,
        thinking_start="",
        thinking_end="So 21.",
        thinking_budget_message="not wanted here",
    )
    assert tokens[: 2 + len(end)] == [10, 11, *end]


def test_without_a_budget_the_model_is_untouched(loaded, cases):
    model, tokenizer, predictor = loaded
    case = cases["p1_b40"]
    for budget in (None, -1):
        sampler = make_budget_sampler(
            model,
            tokenizer,
            predictor,
            prompt=case["prompt_ids"],
            thinking_budget=budget,
        )
        assert active_recorder(model) is None
        assert (
            stock(model, tokenizer, case["prompt_ids"], sampler)
            == (case["plain_tokens"])
        )


def test_the_model_is_restored_when_the_sampler_is_gone(loaded, cases):
    model, tokenizer, predictor = loaded
    classes = [type(m) for m in model.modules()]
    sampler = make_budget_sampler(
        model, tokenizer, predictor, prompt=[5], thinking_budget=9
    )
    assert active_recorder(model) is not None
    del sampler
    gc.collect()
    assert active_recorder(model) is None
    assert [type(m) for m in model.modules()] == classes


def test_a_closed_sampler_says_so(loaded):
    model, tokenizer, predictor = loaded
    sampler = make_budget_sampler(
        model, tokenizer, predictor, prompt=[5], thinking_budget=9
    )
    sampler.close()
    with pytest.raises(ValueError, match="was closed"):
        sampler(mx.zeros((1, 448)))


def test_a_second_request_needs_a_second_sampler(loaded, cases):
    model, tokenizer, predictor = loaded
    first, second = cases["p0_b5"]["prompt_ids"], cases["p1_b5"]["prompt_ids"]
    sampler = make_budget_sampler(
        model, tokenizer, predictor, prompt=first, thinking_budget=40
    )
    stock(model, tokenizer, first, sampler, max_tokens=4)
    with pytest.raises(ValueError, match="Make a sampler for each request"):
        stock(model, tokenizer, second, sampler, max_tokens=4)


def test_the_prompt_must_be_the_one_generated_from(loaded, cases):
    model, tokenizer, predictor = loaded
    sampler = make_budget_sampler(
        model, tokenizer, predictor, prompt=[1, 2, 3], thinking_budget=40
    )
    with pytest.raises(ValueError, match="that request's own prompt"):
        stock(model, tokenizer, cases["p0_b5"]["prompt_ids"], sampler, max_tokens=4)


def test_a_sampler_runs_with_its_own_model_alone(loaded, cases):
    model, tokenizer, predictor = loaded
    prompt = cases["p0_b40"]["prompt_ids"]
    sampler = make_budget_sampler(
        model, tokenizer, predictor, prompt=prompt, thinking_budget=40
    )
    other = ScriptedModel([5] * 99, len(prompt))
    with pytest.raises(ValueError, match="forward pass of its own model"):
        stock(other, tokenizer, prompt, sampler, max_tokens=4)
    # The prompt of another request is no step of this one either.
    model(mx.array([prompt]))
    with pytest.raises(ValueError, match="forward pass of its own model"):
        sampler(mx.zeros((1, 448)))
    sampler.close()


def test_speculative_decoding_is_refused_in_the_stock_loop(loaded, cases):
    model, tokenizer, predictor = loaded
    prompt = cases["p0_b40"]["prompt_ids"]
    sampler = make_budget_sampler(
        model, tokenizer, predictor, prompt=prompt, thinking_budget=40
    )
    draft = ScriptedModel([5] * 99, len(prompt))
    with pytest.raises(ValueError, match="speculative decoding"):
        stock(model, tokenizer, prompt, sampler, max_tokens=9, draft_model=draft)
    sampler.close()


def test_a_closed_sampler_is_refused_while_others_run(loaded, cases):
    model, tokenizer, predictor = loaded
    prompt = cases["p0_b40"]["prompt_ids"]
    closed, other = (
        make_budget_sampler(
            model, tokenizer, predictor, prompt=prompt, thinking_budget=40
        )
        for _ in range(2)
    )
    closed.close()
    with pytest.raises(ValueError, match="was closed: make a new one"):
        stock(model, tokenizer, prompt, closed, max_tokens=3)
    other.close()


def first_tokens(loaded, case, n: int, **sampling) -> list[int]:
    """The first tokens of n replies to the same prompt."""
    model, tokenizer, predictor = loaded
    samplers = [
        make_budget_sampler(
            model,
            tokenizer,
            predictor,
            prompt=case["prompt_ids"],
            thinking_budget=case["budget"],
            **sampling,
        )
        for _ in range(n)
    ]
    generator = BatchGenerator(model, completion_batch_size=n, prefill_batch_size=n)
    generator.insert([case["prompt_ids"]] * n, [1] * n, samplers=samplers)
    tokens = []
    while responses := generator.next_generated():
        tokens += [r.token for r in responses]
    generator.close()
    for sampler in samplers:
        assert sampler.guided_steps[0] == 0
        sampler.close()
    assert len(tokens) == n
    return tokens


def test_sampling_follows_the_guided_distribution(loaded, golden, cases):
    mx.random.seed(0)
    n = 300
    tokens = first_tokens(loaded, cases["p2_b5"], n, temp=1.0)
    counts = np.bincount(tokens, minlength=448) / n
    probs = golden.arrays["p2_b5.probs"][0]
    logits = golden.arrays["p2_b5.logits"][0]
    plain = np.exp(logits - logits.max())
    plain /= plain.sum()

    def distance(other: np.ndarray) -> float:
        return np.abs(counts - other).sum() / 2

    # The expected distance is below sum(sqrt(p / n)) / 2; it is exceeded by 0.19 less
    # often than once in 10^9 runs (McDiarmid).
    bound = np.sqrt(probs / n).sum() / 2 + 0.19
    assert distance(probs) < bound < 0.4
    # The model alone would draw from another one.
    assert distance(plain) > 2 * bound


def test_filters_apply_to_the_guided_distribution(loaded, golden, cases):
    case = cases["p0_b5"]
    best = int(golden.arrays["p0_b5.probs"][0].argmax())
    assert best != case["plain_tokens"][0]
    for filters in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert set(first_tokens(loaded, case, 8, temp=1.0, **filters)) == {best}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thinking_budget": -2}, "0 .close thinking at once. or more, not -2"),
        ({"thinking_budget": 10**30}, "must be at most 2,147,483,647"),
        ({"thinking_budget": 1.5}, "must be an integer number of tokens, not 1.5"),
        (
            {"thinking_budget": "9"},
            "must be an integer number of tokens, auto, .* not '9'",
        ),
        ({"thinking_budget": True}, "must be an integer"),
        ({"thinking_budget": 9, "hard_stop": 0.9}, "1 or more, or None; not 0.9"),
        ({"thinking_budget": 9, "hard_stop": float("nan")}, "1 or more"),
        ({"thinking_budget": 9, "temp": -1}, "temp must be finite and 0 or more"),
        ({"thinking_budget": 9, "prompt": []}, "prompt is empty"),
        ({"thinking_budget": "auto", "predictor": None}, "auto is a share of what a"),
        ({"thinking_budget": 9, "predictor": True}, "must be a Predictor, None for"),
        (
            {"thinking_budget": 9, "predictor": False, "hard_stop": None},
            "nothing would hold thinking to its budget",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(loaded, options, message):
    model, tokenizer, predictor = loaded
    options = {"prompt": [5], "predictor": predictor, **options}
    with pytest.raises(ValueError, match=message):
        make_budget_sampler(model, tokenizer, **options)
    assert active_recorder(model) is None
