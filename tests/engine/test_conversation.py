"""Turns on one KV cache give what the whole conversation gives from scratch."""

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ConcatenateKVCache, can_trim_prompt_cache

from conversations import (
    FIRST,
    KEEPING,
    OFF,
    SECOND,
    SWITCHED,
    ask,
    assert_same,
    from_scratch,
    said,
    tokens,
    user,
    with_template,
)
from mlx_budget import load, stream_generate
from mlx_budget.engine.conversation import Conversation
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.recorder import active_recorder
from scripted import ScriptedModel
from tiny_models import LLAMA, MAMBA, build

REASONING = KEEPING.replace("m.content", "(m.reasoning_content or '') + m.content")
CHANNELS = KEEPING.replace("m.content", "(m.thinking or '') + m.content")


@pytest.fixture(scope="module")
def demo():
    return load("demo")


@pytest.fixture
def conversation(demo):
    return Conversation(*demo)


def as_text(*turns: str) -> str:
    """Questions and answers in turn, as the built-in model's template writes them."""
    roles = ("user", "assistant")
    written = [
        f"<|im_start|>{roles[i % 2]}\n{text}<|im_end|>\n"
        for i, text in enumerate(turns)
    ]
    return "".join(written) + "<|im_start|>assistant\n<think>\n"


@pytest.mark.parametrize("budgets", [(60, 20), (20, 60), (0, 30), (30, None)])
def test_a_second_turn_is_that_from_scratch_without_the_thinking(
    demo, conversation, budgets
):
    first = ask(conversation, FIRST, budgets[0])
    answer = said(first).split("</think>\n\n")[-1]
    text = as_text(FIRST, answer, SECOND)
    second = ask(conversation, SECOND, budgets[1])
    whole = from_scratch(demo, text, budgets[1])
    assert_same(second, whole)
    assert second[-1].thinking_budget == budgets[1]
    assert conversation.prompt_tokens == whole[-1].prompt_tokens
    # What is shared ends where the first thinking began.
    ids = [encode_chat(demo[1], FIRST), demo[1].encode(text)]
    assert second[-1].prompt_tokens == len(ids[1]) - (len(ids[0]) - 2)


def test_many_turns_with_an_automatic_budget(demo, conversation):
    turns = []
    for question in (FIRST, SECOND, FIRST, SECOND):
        turns.append(question)
        responses = ask(conversation, question, "auto")
        whole = from_scratch(demo, as_text(*turns), "auto")
        assert_same(responses, whole)
        assert responses[-1].thinking_budget == whole[-1].thinking_budget
        turns.append(said(responses).split("</think>\n\n")[1])
        assert responses[-1].prompt_tokens < 45


def test_sampled_replies_and_limits_follow_the_options(demo):
    options = {"temp": 1.0, "max_tokens": 9}
    conversation = Conversation(*demo, **options)
    mx.random.seed(3)
    responses = ask(conversation, FIRST, 60)
    mx.random.seed(3)
    assert tokens(responses) == tokens(
        from_scratch(demo, as_text(FIRST), 60, **options)
    )
    assert len(responses) == 9


@pytest.mark.parametrize("stop_after", [1, 7, 25])
def test_a_turn_stopped_in_its_thinking_leaves_nothing(demo, conversation, stop_after):
    responses = ask(conversation, FIRST, 60, stop_after)
    assert len(responses) == stop_after
    assert responses[-1].is_thinking
    assert conversation.messages == []
    assert active_recorder(demo[0]) is None
    again = ask(conversation, FIRST, 20)
    assert_same(again, from_scratch(demo, as_text(FIRST), 20))
    # Thinking was found open, so that the budget held.
    assert 0 < again[-1].thinking_tokens <= 22


def test_a_stopped_answer_is_kept(demo, conversation):
    whole = ask(conversation, FIRST, 60)
    all_of_it = said(whole).split("</think>\n\n")[1]
    conversation.reset()
    part = ask(conversation, FIRST, 60, stop_after=len(whole) - 4)
    answer = said(part).split("</think>\n\n")[1]
    assert answer and answer != all_of_it and all_of_it.startswith(answer)
    second = ask(conversation, SECOND, 30)
    text = as_text(FIRST, answer, SECOND)
    assert_same(second, from_scratch(demo, text, 30))
    assert second[-1].prompt_tokens < conversation.prompt_tokens


def test_a_turn_stopped_while_its_prompt_is_read_leaves_nothing(demo):
    conversation = Conversation(*demo, prefill_step_size=8)
    ask(conversation, FIRST, 60)
    history = list(conversation.messages)
    asked = []

    def stopped() -> bool:
        asked.append(True)
        return len(asked) == 3

    assert list(conversation.ask(SECOND, 60, stopped)) == []
    assert len(asked) == 3
    assert conversation.messages == history
    answer = history[1]["content"].split("</think>\n\n")[1]
    whole = from_scratch(demo, as_text(FIRST, answer, FIRST), 60)
    third = ask(conversation, FIRST, 60)
    assert_same(third, whole)
    assert third[-1].prompt_tokens < conversation.prompt_tokens


def test_a_turn_that_breaks_off_leaves_nothing(demo, conversation, monkeypatch):
    ask(conversation, FIRST, 60)
    history = list(conversation.messages)
    turn = conversation.ask(SECOND, 60)
    next(turn)
    with pytest.raises(KeyboardInterrupt):
        turn.throw(KeyboardInterrupt)
    turn = conversation.ask(SECOND, 60)
    next(turn)
    turn.close()
    assert conversation.messages == history
    assert active_recorder(demo[0]) is None
    answer = history[1]["content"].split("</think>\n\n")[1]
    whole = from_scratch(demo, as_text(FIRST, answer, SECOND), 60)
    second = ask(conversation, SECOND, 60)
    assert_same(second, whole)
    # Whatever broke it off may have left a layer unfinished.
    assert second[-1].prompt_tokens == conversation.prompt_tokens


def test_thinking_that_is_cut_off_leaves_nothing(demo):
    conversation = Conversation(*demo, max_tokens=10)
    assert ask(conversation, FIRST)[-1].finish_reason == "length"
    assert conversation.messages == []


def test_a_changed_system_prompt_is_read_anew(demo, conversation):
    ask(conversation, FIRST, 0)
    conversation.system_prompt = "Be terse."
    second = ask(conversation, SECOND, 20)
    answer = conversation.messages[1]["content"]
    text = "<|im_start|>system\nBe terse.<|im_end|>\n" + as_text(FIRST, answer, SECOND)
    assert_same(second, from_scratch(demo, text, 20))


def test_a_limited_cache_that_has_overflowed_is_made_anew(demo):
    tokenizer = demo[1]
    model = build("qwen3", dict(LLAMA, vocab_size=tokenizer.vocab_size))
    loaded = (model, tokenizer, False)
    options = {"max_tokens": 40, "max_kv_size": 48}
    conversation = Conversation(*loaded, **options)
    ask(conversation, FIRST, 10)
    assert not can_trim_prompt_cache(conversation._cache.layers)
    second = ask(conversation, SECOND, 10)
    assert second[-1].prompt_tokens == conversation.prompt_tokens
    prompt = encode_chat(tokenizer, [*conversation.messages[:2], user(SECOND)])
    assert_same(second, from_scratch(loaded, prompt, 10, **options))


@pytest.mark.parametrize(
    ("max_kv_size", "last"), [(90, False), (110, False), (140, True)]
)
def test_a_cache_of_limited_size_is_cut_while_nothing_is_lost(demo, max_kv_size, last):
    conversation = Conversation(*demo, max_kv_size=max_kv_size)
    is_cut = []
    for question in (FIRST, SECOND, FIRST, SECOND, FIRST):
        prompt = encode_chat(demo[1], [*conversation.messages, user(question)])
        responses = ask(conversation, question, 20)
        whole = from_scratch(demo, prompt, 20, max_kv_size=max_kv_size)
        assert_same(responses, whole)
        is_cut.append(len(prompt) > responses[-1].prompt_tokens)
    assert is_cut == [False, True, True, max_kv_size > 90, last]


def test_a_prompt_beyond_a_limited_size_is_read_whole(demo):
    options = {"max_kv_size": 60, "prefill_step_size": 16, "max_tokens": 40}
    conversation = Conversation(*demo, **options)
    ask(conversation, FIRST, 20)
    assert can_trim_prompt_cache(conversation._cache.layers)
    question = FIRST.replace("+ 8", "+ 8 - 9" * 10)
    prompt = encode_chat(demo[1], [*conversation.messages, user(question)])
    assert len(prompt) > 60
    second = ask(conversation, question, 20)
    assert_same(second, from_scratch(demo, prompt, 20, **options))


def test_layers_of_other_kinds_are_not_cut(demo):
    model = build("qwen3", dict(LLAMA, vocab_size=demo[1].vocab_size))
    # They count as cut what they hold on to.
    model.make_cache = lambda: [ConcatenateKVCache() for _ in model.layers]
    conversation = Conversation(model, demo[1], False, max_tokens=30)
    ask(conversation, FIRST, 10)
    prompt = encode_chat(demo[1], [*conversation.messages, user(SECOND)])
    second = ask(conversation, SECOND, 10)
    whole = from_scratch((model, demo[1], False), prompt, 10, max_tokens=30)
    assert_same(second, whole)


@pytest.mark.parametrize("name", ["qwen3", "gemma3_text"])
def test_a_history_that_is_kept_whole_is_gone_on_with(name):
    _, tokenizer, _ = with_template(KEEPING)
    config = dict(LLAMA, vocab_size=tokenizer.vocab_size)
    if name == "gemma3_text":
        # Its windows cannot be cut once they are full.
        config |= {"sliding_window_pattern": 2, "sliding_window": 8}
    loaded = (build(name, config), tokenizer, False)
    conversation = Conversation(*loaded, max_tokens=2)
    first = ask(conversation, FIRST, 0)
    fed = encode_chat(tokenizer, FIRST) + tokens(first)
    ids = encode_chat(tokenizer, [*conversation.messages, user(SECOND)])
    assert ids[: len(fed)] == fed
    second = ask(conversation, SECOND, 0)
    assert second[-1].prompt_tokens == len(ids) - len(fed)
    assert_same(second, from_scratch(loaded, ids, 0, max_tokens=2))


def test_thinking_stays_in_the_text_for_a_template_without_a_field_for_it():
    loaded = with_template(KEEPING)
    conversation = Conversation(*loaded)
    reply = said(ask(conversation, FIRST, 60))
    thinking, answer = reply.split("</think>")
    assert thinking.strip() and answer.strip()
    written = {"role": "assistant", "content": f"<think>{reply}"}
    assert conversation.messages == [user(FIRST), written]


@pytest.mark.parametrize(
    ("template", "field"), [(REASONING, "reasoning_content"), (CHANNELS, "thinking")]
)
def test_thinking_goes_into_the_field_that_the_template_names(template, field):
    loaded = with_template(template)
    conversation = Conversation(*loaded, max_tokens=90)
    thinking, answer = said(ask(conversation, FIRST, 60)).split("</think>\n\n")
    message = {"role": "assistant", "content": answer, field: thinking.strip()}
    assert conversation.messages == [user(FIRST), message]
    prompt = encode_chat(loaded[1], [*conversation.messages, user(SECOND)])
    assert thinking.strip() in loaded[1].decode(prompt)
    second = ask(conversation, SECOND, 20)
    assert_same(second, from_scratch(loaded, prompt, 20, max_tokens=90))


def test_a_message_of_channels_holds_the_last_one_alone():
    _, tokenizer, _ = with_template(CHANNELS)
    text = (
        "<|channel|>analysis<|message|>Hm.</think>"
        "<|start|>assistant<|channel|>final<|message|>12."
    )
    script = tokenizer.encode(text, add_special_tokens=False)
    length = len(encode_chat(tokenizer, FIRST))
    model = ScriptedModel(
        [*script, *tokenizer.eos_token_ids], length, len(tokenizer.get_vocab())
    )
    conversation = Conversation(model, tokenizer, False)
    ask(conversation, FIRST)
    assert conversation.messages[-1] == {
        "role": "assistant",
        "content": "12.",
        "thinking": "Hm.",
    }


@pytest.mark.parametrize("budgets", [(0, 30, 0), (30, 0, 60), (None, 0, 0, None)])
def test_a_budget_of_0_is_the_templates_own_switch_turn_by_turn(budgets):
    loaded = with_template(SWITCHED)
    conversation = Conversation(*loaded)
    for question, budget in zip((FIRST, SECOND, FIRST, SECOND), budgets, strict=False):
        switch = OFF if budget == 0 else None
        messages = [*conversation.messages, user(question)]
        prompt = encode_chat(loaded[1], messages, chat_template_config=switch)
        turn = ask(conversation, question, budget)
        assert_same(turn, from_scratch(loaded, prompt, budget))
        assert conversation.switch == switch
        if budget == 0:
            assert "</think>" not in said(turn)
            assert (turn[-1].thinking_tokens, turn[-1].closed_by) == (0, "budget")
            assert conversation.messages[-1]["content"] == said(turn)


def test_a_switch_back_and_forth_reads_only_what_is_new():
    """Where the cache cannot be cut, too."""
    _, tokenizer, _ = with_template(SWITCHED)
    model = build("mamba", dict(MAMBA, vocab_size=tokenizer.vocab_size))
    conversation = Conversation(model, tokenizer, False, max_tokens=20)
    for budget in (0, 10, 0, 5, 0):
        ask(conversation, FIRST, budget)
        assert conversation.read_again == 0, conversation.reason


def test_arguments_of_the_template_that_were_given_are_left_as_they_are():
    loaded = with_template(SWITCHED)
    conversation = Conversation(*loaded, chat_template_config={"enable_thinking": True})
    assert said(ask(conversation, FIRST, 0)).startswith("\n</think>\n\n")
    assert conversation.switch is None


def test_turns_with_a_seed_draw_as_requests_with_the_next_seeds_do(demo):
    conversation = Conversation(*demo, temp=1.0, seed=5, max_tokens=40)
    for seed, question in ((5, FIRST), (6, FIRST)):
        messages = [*conversation.messages, user(question)]
        prompt = encode_chat(demo[1], messages)
        alone = stream_generate(
            *demo[:2], prompt, predictor=demo[2], temp=1.0, seed=seed, max_tokens=40
        )
        assert tokens(ask(conversation, question)) == tokens(alone)
