"""Generation with a budget: our own stream and the options of mlx-lm."""

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import pytest
from mlx_lm.models import qwen3
from mlx_lm.models.cache import QuantizedKVCache, make_prompt_cache

from counting import counting
from mlx_budget import PredictorConfig, generate, stream_generate
from mlx_budget.engine.generate import default_max_tokens, statistics
from mlx_budget.engine.recorder import active_recorder
from mlx_budget.method.encoder_predictor import EncoderPredictor
from scripted import ScriptedModel

NEWLINE, START, END, EOS = 201, 423, 424, 2


@pytest.fixture(scope="module")
def wide_heads():
    """A tiny Qwen3 whose heads are wide enough for a quantised KV cache."""
    mx.random.seed(1)
    model = qwen3.Model(
        qwen3.ModelArgs(
            model_type="qwen3",
            hidden_size=64,
            num_hidden_layers=2,
            intermediate_size=64,
            num_attention_heads=2,
            rms_norm_eps=1e-6,
            vocab_size=448,
            num_key_value_heads=2,
            max_position_embeddings=512,
            rope_theta=10000.0,
            head_dim=32,
            tie_word_embeddings=True,
        )
    )
    predictor = EncoderPredictor(
        PredictorConfig(
            base_model="tiny",
            model_width=64,
            model_layers=2,
            vocab_size=448,
            width=32,
            layers=1,
            heads=2,
            intermediate=32,
        )
    )
    return model.eval(), predictor.eval()


def run(loaded, prompt, **options):
    model, tokenizer, predictor = loaded
    options = {"predictor": predictor, **options}
    return list(stream_generate(model, tokenizer, prompt, **options))


def scripted(tokenizer, script, prompt=(5, START), **options):
    model = ScriptedModel(script, len(prompt))
    return list(
        stream_generate(model, tokenizer, list(prompt), predictor=False, **options)
    )


@pytest.mark.parametrize("p", range(3))
@pytest.mark.parametrize("budget", [5, 40, 200, 1000])
def test_our_stream_gives_the_golden_tokens(loaded, cases, p, budget):
    case = cases[f"p{p}_b{budget}"]
    responses = run(
        loaded,
        case["prompt_ids"],
        thinking_budget=budget,
        hard_stop=None,
        max_tokens=case["max_new"],
    )
    assert [r.token for r in responses] == case["guided_tokens"]


def test_without_a_budget_it_is_plain_mlx_lm(loaded, cases):
    model, tokenizer, _ = loaded
    case = cases["p0_b5"]
    for predictor in (None, False, loaded[2]):
        responses = run(loaded, case["prompt_ids"], predictor=predictor)
        assert [r.token for r in responses] == case["plain_tokens"]
        assert [r.thinking_budget for r in responses] == [None] * len(responses)
    assert responses[-1].closed_by == "model"
    assert responses[-1].thinking_tokens == case["plain_tokens"].index(END)
    text = mlx_lm.generate(model, tokenizer, case["prompt_ids"])
    assert generate(model, tokenizer, case["prompt_ids"]) == text


def test_responses_tell_thinking_from_answer(loaded):
    responses = scripted(loaded[1], [10, 11, END, 12, 13], thinking_budget=9)
    assert [r.is_thinking for r in responses] == [True, True, True, False, False, False]
    assert [r.thinking_tokens for r in responses] == [1, 2, 2, 2, 2, 2]
    assert [r.closed_by for r in responses] == [None, None] + ["model"] * 4
    assert {r.thinking_budget for r in responses} == {9}
    assert responses[-1].finish_reason == "stop"


def test_a_forced_close_is_told_from_the_models(loaded):
    responses = scripted(loaded[1], list(range(10, 30)), thinking_budget=4, hard_stop=1)
    assert [r.closed_by for r in responses][:6] == [None] * 4 + ["budget"] * 2
    assert responses[-1].thinking_tokens == 4
    assert statistics(responses[-1]).endswith(
        "Thinking: 4 of 4 tokens, closed by the budget"
    )


def test_a_forced_close_in_the_last_token_is_told(loaded):
    responses = scripted(
        loaded[1], list(range(10, 30)), thinking_budget=4, hard_stop=1, max_tokens=5
    )
    assert responses[-1].token == END
    assert responses[-1].closed_by == "budget"


def test_the_models_own_block_is_followed(loaded):
    script = [NEWLINE, START, 11, 12, END, 13]
    responses = scripted(loaded[1], script, prompt=[5, 6], thinking_budget=9)
    flags = [r.is_thinking for r in responses]
    assert flags == [False, True, True, True, True, False, False]


def test_an_end_of_sequence_inside_thinking_ends_the_reply(loaded):
    responses = scripted(loaded[1], [10, 11, EOS, 12, 13], thinking_budget=9)
    last = responses[-1]
    assert (last.finish_reason, last.closed_by, last.thinking_tokens) == (
        "stop",
        None,
        2,
    )
    assert "ended its reply there: there is no answer" in statistics(last)


def test_the_limit_on_tokens_may_cut_thinking(loaded):
    responses = scripted(loaded[1], [10] * 30, thinking_budget=9, max_tokens=3)
    assert responses[-1].finish_reason == "length"
    assert "Thinking: 3 of 9 tokens, cut off by the limit" in statistics(responses[-1])


def test_a_model_that_does_not_think_is_reported(loaded):
    responses = scripted(loaded[1], [10, 11], prompt=[5], thinking_budget=9)
    assert "the model did not think" in statistics(responses[-1])


def test_an_opening_marker_of_several_tokens_is_not_part_of_the_answer(loaded):
    tokenizer = loaded[1]
    opening = tokenizer.encode("the answer is:", add_special_tokens=False)
    other = tokenizer.encode("the question", add_special_tokens=False)
    assert opening[0] == other[0] and len(opening) > 2
    options = {
        "prompt": [5, 6],
        "thinking_budget": 9,
        "thinking_start": "the answer is:",
        "thinking_end": "</think>",
    }
    script = [*opening, 10, 11, END, 12]
    responses = scripted(tokenizer, script, **options)
    assert [r.token for r in responses] == [*script, EOS]
    thinking = [r.is_thinking for r in responses]
    assert thinking == [True] * (len(opening) + 3) + [False] * 2
    # What only begins like it is answer, and so is a marker behind an answer.
    responses = scripted(tokenizer, [*other, *opening, 10], **options)
    assert not any(r.is_thinking for r in responses)
    assert "".join(r.text for r in responses) == "the questionthe answer is:("


def test_a_sampler_of_none_leaves_the_budget_on(loaded):
    responses = scripted(
        loaded[1], list(range(10, 30)), thinking_budget=4, hard_stop=1, sampler=None
    )
    assert responses[-1].closed_by == "budget"


def test_a_generator_closed_early_leaves_the_model_as_it_was(loaded, cases):
    model, tokenizer, predictor = loaded
    stream = stream_generate(
        model,
        tokenizer,
        cases["p0_b40"]["prompt_ids"],
        predictor=predictor,
        thinking_budget=40,
    )
    next(stream)
    assert active_recorder(model) is not None
    stream.close()
    assert active_recorder(model) is None


def test_an_interrupt_leaves_the_model_as_it_was(loaded, cases):
    model, tokenizer, predictor = loaded

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            loaded,
            cases["p0_b40"]["prompt_ids"],
            thinking_budget=40,
            prompt_progress_callback=interrupt,
        )
    assert active_recorder(model) is None


def test_a_reused_prompt_cache_changes_nothing(loaded, cases):
    model, tokenizer, _ = loaded
    prompt = cases["p1_b40"]["prompt_ids"]
    options = {"thinking_budget": 40, "max_tokens": 60}
    whole = [r.token for r in run(loaded, prompt, **options)]
    cache = make_prompt_cache(model)
    model(mx.array([prompt[:10]]), cache=cache)
    reused = run(loaded, prompt[10:], prompt_cache=cache, **options)
    assert [r.token for r in reused] == whole


def test_two_turns_on_one_prompt_cache(loaded, cases):
    model, tokenizer, _ = loaded
    first, second = cases["p0_b40"]["prompt_ids"], cases["p1_b40"]["prompt_ids"]
    cache = make_prompt_cache(model)
    options = {"thinking_budget": 20, "max_tokens": 40}
    said = [r.token for r in run(loaded, first, prompt_cache=cache, **options)]
    kept = cache[0].offset - len(first)
    on = [r.token for r in run(loaded, second, prompt_cache=cache, **options)]
    whole = first + said[:kept] + second
    assert on == [r.token for r in run(loaded, whole, **options)]


def test_a_long_prompt_is_read_in_chunks(loaded, cases):
    prompt = cases["p2_b40"]["prompt_ids"]
    options = {"thinking_budget": 40, "max_tokens": 40}
    whole = [r.token for r in run(loaded, prompt, **options)]
    read = []
    options["prompt_progress_callback"] = lambda done, total: read.append(done)
    chunked = run(loaded, prompt, prefill_step_size=7, **options)
    assert [r.token for r in chunked] == whole
    n = len(prompt)
    # The last token is read with the first step.
    assert read == [*range(0, n - 1, 7), n - 1, n]


@pytest.fixture
def guided(wide_heads):
    """That model with a predictor that is counted, and the rows of its encodings."""
    model, predictor = wide_heads
    encoded = []
    yield model, counting(predictor, encoded.append), encoded
    # At the first thinking token, at least.
    assert encoded and set(encoded) == {1}
    assert active_recorder(model) is None


def test_a_quantised_kv_cache_works_under_guidance(loaded, guided):
    model, predictor, _ = guided
    cache = make_prompt_cache(model)
    responses = run(
        (model, loaded[1], predictor),
        [5, 6, 7, START],
        thinking_budget=20,
        max_tokens=40,
        prompt_cache=cache,
        kv_bits=8,
        kv_group_size=32,
        quantized_kv_start=0,
    )
    assert {type(layer) for layer in cache} == {QuantizedKVCache}
    assert 0 < responses[-1].thinking_tokens <= 22


def test_a_kv_cache_of_limited_size_works_under_guidance(loaded, guided):
    model, predictor, _ = guided
    prompt = [5, 6, 7, START]

    def tokens(**options) -> list[int]:
        parts = model, loaded[1], predictor
        options = {"thinking_budget": 20, "max_tokens": 40, **options}
        return [r.token for r in run(parts, prompt, **options)]

    limited = tokens(max_kv_size=16)
    assert limited == tokens(prompt_cache=make_prompt_cache(model, 16))
    assert limited != tokens()


def test_logits_processors_work_under_guidance(loaded, guided):
    model, predictor, encoded = guided
    responses = run(
        (model, loaded[1], predictor),
        [5, 6, 7, START],
        thinking_budget=20,
        max_tokens=22,
        logits_processors=[lambda _, logits: logits.at[:, 9].add(1e4)],
    )
    assert [r.token for r in responses] == [9] * 22
    assert encoded == [1]  # the first token alone, since 9 is no newline


def test_a_quantised_model_is_guided(loaded, wide_heads):
    model, predictor = wide_heads
    quantised = qwen3.Model(model.args)
    quantised.update(model.parameters())
    nn.quantize(quantised, group_size=64, bits=4)
    encoded = []
    responses = run(
        (quantised, loaded[1], counting(predictor.quantize(8, 32), encoded.append)),
        [5, 6, START],
        thinking_budget=20,
        max_tokens=40,
    )
    assert responses[-1].closed_by in ("model", "budget")
    thoughts = [r.token for r in responses if r.is_thinking]
    newlines = [t for t in thoughts[:20] if "\n" in loaded[1].decode([t])]
    assert encoded == [1] * (1 + len(newlines))


def test_seeds_repeat_a_sampled_run(loaded, cases):
    def sample(seed: int) -> list[int]:
        mx.random.seed(seed)
        prompt = cases["p0_b40"]["prompt_ids"]
        options = {"thinking_budget": 40, "temp": 1.0, "max_tokens": 40}
        return [r.token for r in run(loaded, prompt, **options)]

    assert sample(3) == sample(3)
    assert sample(3) != sample(4)


def test_text_prompts_are_encoded_as_mlx_lm_does(loaded):
    model, tokenizer, _ = loaded
    text = "<|im_start|>user\nWhat is 14 + 7?"
    responses = list(stream_generate(model, tokenizer, text, max_tokens=9))
    theirs = mlx_lm.stream_generate(model, tokenizer, text, max_tokens=9)
    assert [r.token for r in responses] == [r.token for r in theirs]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft_model": object()}, "Speculative decoding .draft_model. cannot"),
        ({"sampler": max}, "brings its own sampler"),
        ({"predictor": True}, "must be a Predictor, None for a prior"),
    ],
)
def test_what_cannot_be_honoured_is_refused(loaded, options, message):
    with pytest.raises(ValueError, match=message):
        run(loaded, [5, START], thinking_budget=9, **options)


def test_an_empty_prompt_is_refused(loaded):
    with pytest.raises(ValueError, match="prompt is empty"):
        run(loaded, [])


@pytest.mark.parametrize(
    ("budget", "hard_stop", "tokens"),
    [(1000, 1.1, 3148), (10, 1.1, 2059), (0, 1.1, 2048), (None, 1.1, 8192)],
)
def test_there_is_room_for_an_answer(budget, hard_stop, tokens):
    assert default_max_tokens(budget, hard_stop) == tokens


def test_statistics_are_in_the_wording_of_mlx_lm(loaded):
    lines = statistics(scripted(loaded[1], [10, END], thinking_budget=9)[-1])
    first, second, third, fourth = lines.splitlines()
    assert first.startswith("Prompt: 2 tokens, ")
    assert second.startswith("Generation: 3 tokens, ")
    assert third.startswith("Peak memory: ")
    assert fourth == "Thinking: 1 of 9 tokens, closed by the model"
