"""Turns read only what is new where a KV cache cannot be cut, with the same replies."""

from functools import partial

import mlx.core as mx
import mlx_lm
import pytest
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    KVCache,
    RotatingKVCache,
    can_trim_prompt_cache,
    make_prompt_cache,
)

from conversations import FIRST, KEEPING, SECOND, ask, said, tokens, user
from mlx_budget import load, stream_generate
from mlx_budget.engine.caches import ConversationCache, common_prefix
from mlx_budget.engine.conversation import Conversation
from mlx_budget.engine.prompts import encode_chat
from tiny_models import (
    FALCON_H1,
    GPT_OSS,
    LLAMA,
    MAMBA,
    QWEN3_NEXT,
    RECURRENT_GEMMA,
    build,
)

GEMMA3 = dict(LLAMA, sliding_window_pattern=2, sliding_window=24)
# With these options a reply is not what the model gives in one pass.
CHANGING = {"max_kv_size", "logits_processors"}
MODELS = {
    "mamba": MAMBA,
    "gemma3_text": GEMMA3,
    "gpt_oss": GPT_OSS,
    "qwen3_next": QWEN3_NEXT,
    "falcon_h1": FALCON_H1,
    "recurrent_gemma": RECURRENT_GEMMA,
}
QUESTIONS = (FIRST, SECOND, "And 3 + 4 - 5 + 2?", "What is 1 + 1?")
REPLIES = (
    "8 + 5 = 13\n</think>\n\nThe answer is 12.",
    "6 - 2 = 4\n</think>\n\nThe answer is 4.",
    "2 + 2 = 4\n</think>\n\nIt is 4.",
    "1 + 1 = 2\n</think>\n\nThe answer is 2.",
)


@pytest.fixture(scope="module")
def tokenizers():
    """The built-in model's tokenizer, with templates that drop and keep thinking."""
    drops, keeps = load("demo")[1], load("demo")[1]
    keeps._tokenizer.chat_template = KEEPING
    return {"drops": drops, "keeps": keeps}


@pytest.fixture(params=["drops", "keeps"])
def tokenizer(tokenizers, request):
    return tokenizers[request.param]


@pytest.fixture(params=MODELS)
def model(request):
    return built(request.param)


def built(name: str, **changes):
    vocab_size = load("demo")[1].vocab_size
    model = build(name, dict(MODELS[name], vocab_size=vocab_size, **changes))
    if name == "mamba":
        # So that its states remember what was long ago.
        for layer in model.layers:
            layer.mixer.A_log -= 6
    return model


class Chat:
    """A conversation of which every turn is compared with one from scratch."""

    def __init__(self, model, tokenizer, **options):
        self.model, self.tokenizer = model, tokenizer
        self.options = {"max_tokens": 90, **options}
        self.conversation = Conversation(model, tokenizer, False, **self.options)
        self.fed: list[int] = []

    def turn(self, question, reply=None, budget=None, stop_after=None):
        """A turn, in which the model says ``reply`` if there is one.

        Returns:
            tuple: Tokens that were read of the prompt, and tokens that had to be.
        """
        chat, options = self.conversation, self.options
        ids = encode_chat(
            self.tokenizer,
            [*chat.messages, user(question)],
            system_prompt=chat.system_prompt,
            chat_template_config={"enable_thinking": budget != 0},
        )
        new = len(ids) - common_prefix(self.fed, ids[:-1])
        if reply is not None:
            chat._loop["sampler"] = self.saying(reply)
            options = {**options, "sampler": self.saying(reply)}
        turn = ask(chat, question, budget, stop_after)
        found = mx.stack([response.logprobs for response in turn])
        if reply is None or not self.options.keys().isdisjoint(CHANGING):
            options = {"thinking_budget": budget, **options}
            expected = self.from_scratch(ids, turn, **options)
        else:
            expected = self.at_one_pass([*ids, *tokens(turn)])[-len(turn) :]
        # Read in other pieces, a prompt gives other roundings of float32.
        assert mx.allclose(found, expected, rtol=0, atol=1e-3)
        if reply is not None and stop_after is None:
            assert said(turn) == reply
        self.fed = ids + tokens(turn)
        assert chat.prompt_tokens == len(ids)
        return turn[-1].prompt_tokens, new

    def from_scratch(self, ids: list[int], turn: list, **options) -> mx.array:
        """Log-probabilities of a reply without a conversation, with the same tokens."""
        model, tokenizer = self.model, self.tokenizer
        whole = stream_generate(model, tokenizer, ids, predictor=False, **options)
        whole = [r for r, _ in zip(whole, turn, strict=False)]
        assert tokens(turn) == tokens(whole)
        return mx.stack([response.logprobs for response in whole])

    def at_one_pass(self, ids: list[int]) -> mx.array:
        """What the model gives to what follows each token but the last.

        Where a script decides what is said, this is what it would say from scratch,
        and a few milliseconds of work.
        """
        logits = self.model(mx.array([ids[:-1]]), cache=make_prompt_cache(self.model))
        return logits[0] - mx.logsumexp(logits[0], axis=-1, keepdims=True)

    def saying(self, reply: str):
        """A sampler that says a reply whatever the model wants."""
        script = self.tokenizer.encode(reply, add_special_tokens=False)
        left = iter(script)
        (eos,) = self.tokenizer.eos_token_ids
        return lambda _: mx.array([next(left, eos)])


def test_each_of_four_turns_reads_only_what_is_new(model, tokenizer):
    chat = Chat(model, tokenizer)
    for question, reply in zip(QUESTIONS, REPLIES, strict=True):
        read, new = chat.turn(question, reply)
        assert read == new
        assert chat.conversation.read_again == 0
        assert chat.conversation.reason == ""
    assert not can_trim_prompt_cache(chat.conversation._cache.layers)
    assert new < len(chat.fed) / 3


def test_turns_with_budgets_read_only_what_is_new(model, tokenizers):
    chat = Chat(model, tokenizers["drops"], max_tokens=30)
    for question, budget in zip(QUESTIONS, (10, 4, 0, 7), strict=True):
        read, new = chat.turn(question, budget=budget)
        assert read == new


@pytest.mark.parametrize("stop_after", [1, 9])
def test_a_forgotten_turn_costs_nothing_of_what_came_before(
    model, tokenizer, stop_after
):
    chat = Chat(model, tokenizer)
    chat.turn(FIRST, REPLIES[0])
    chat.turn(SECOND, REPLIES[1], stop_after=stop_after)
    assert len(chat.conversation.messages) == 2
    for question, reply in zip(QUESTIONS[2:], REPLIES[2:], strict=True):
        read, new = chat.turn(question, reply)
        assert read == new


def test_the_same_question_again_costs_only_its_own_tokens(model, tokenizer):
    chat = Chat(model, tokenizer)
    chat.turn(FIRST, REPLIES[0])
    chat.turn(SECOND, REPLIES[1], stop_after=3)
    read, _ = chat.turn(SECOND, REPLIES[1], stop_after=3)
    assert read < 25
    read, new = chat.turn(QUESTIONS[2], REPLIES[2])
    assert read == new


def test_a_stopped_answer_is_gone_on_from(model, tokenizer):
    chat = Chat(model, tokenizer)
    length = len(tokenizer.encode(REPLIES[0], add_special_tokens=False))
    chat.turn(FIRST, REPLIES[0], stop_after=length - 3)
    assert chat.conversation.messages[1]["content"].endswith("The answer is")
    read, new = chat.turn(SECOND, REPLIES[1])
    assert read == new


def test_a_prompt_that_was_read_in_part_is_read_on(model, tokenizer):
    chat = Chat(model, tokenizer, prefill_step_size=4)
    chat.turn(FIRST, REPLIES[0])
    for patience in range(2, 9):
        asked = []

        def stopped(asked=asked, patience=patience) -> bool:
            asked.append(True)
            return len(asked) >= patience

        assert len(list(chat.conversation.ask(QUESTIONS[2], None, stopped))) <= 1
    chat.fed = encode_chat(tokenizer, [*chat.conversation.messages, user(QUESTIONS[2])])
    read, new = chat.turn(SECOND, REPLIES[1])
    assert read <= new


def test_a_reset_chat_begins_anew(model, tokenizer):
    chat = Chat(model, tokenizer)
    chat.turn(FIRST, REPLIES[0])
    chat.conversation.reset()
    read, _ = chat.turn(SECOND, REPLIES[1])
    assert read == chat.conversation.prompt_tokens
    read, new = chat.turn(FIRST, REPLIES[0])
    assert read == new


def test_another_system_prompt_is_read_with_all_that_follows(model, tokenizer):
    chat = Chat(model, tokenizer)
    chat.turn(FIRST, REPLIES[0])
    chat.conversation.system_prompt = "Be terse."
    chat.turn(SECOND, REPLIES[1])
    read, new = chat.turn(QUESTIONS[2], REPLIES[2])
    assert read == new


@pytest.mark.skipif(
    mlx_lm.__version__.startswith("0.31"), reason="it shows them its last chunk alone"
)
def test_logits_processors_see_the_whole_prompt(tokenizers):
    lengths = []

    def note(tokens, logits):
        lengths.append(tokens.tolist())
        return logits

    chat = Chat(built("mamba"), tokenizers["drops"], logits_processors=[note])
    for question, reply in zip(QUESTIONS[:2], REPLIES, strict=False):
        lengths.clear()
        chat.turn(question, reply)
        half = len(lengths) // 2
        assert lengths[:half] == lengths[half:]


@pytest.mark.parametrize("max_kv_size", [70, 100, 150])
def test_a_limited_cache_goes_back_while_the_prompt_fits(tokenizer, max_kv_size):
    model = build("qwen3", dict(LLAMA, vocab_size=tokenizer.vocab_size))
    chat = Chat(model, tokenizer, max_kv_size=max_kv_size)
    for question, reply in zip(QUESTIONS, REPLIES, strict=True):
        read, new = chat.turn(question, reply)
        conversation = chat.conversation
        if conversation.prompt_tokens <= max_kv_size:
            assert read == new
        else:
            assert read == conversation.prompt_tokens
            assert conversation.read_again == read - new
            assert f"does not fit into {max_kv_size} tokens" in conversation.reason


def test_a_reply_that_its_history_spells_otherwise_is_read_again(tokenizers):
    chat = Chat(built("mamba"), tokenizers["keeps"])
    encode = tokenizers["keeps"].encode
    # No tokenizer splits it like that.
    spelt = [t for c in (*"1 + 1", "</think>x") for t in encode(c)]
    chat.conversation._loop["sampler"] = partial(next, iter(mx.array(spelt)[:, None]))
    first = ask(chat.conversation, FIRST, stop_after=len(spelt))
    assert tokens(first) == spelt != encode(said(first))
    chat.fed = encode_chat(chat.tokenizer, FIRST) + spelt
    begin = len(chat.fed) - len(spelt)
    read, new = chat.turn(SECOND, REPLIES[1])
    assert chat.conversation.read_again == read - new > 0
    assert read == chat.conversation.prompt_tokens - begin
    assert chat.conversation.reason == "the cache of this model cannot be cut there"


def test_a_turn_that_was_broken_off_says_why_all_is_read_again(tokenizers):
    chat = Chat(built("mamba"), tokenizers["drops"])
    chat.turn(FIRST, REPLIES[0])
    turn = chat.conversation.ask(SECOND)
    next(turn)
    turn.close()
    read, _ = chat.turn(SECOND, REPLIES[1])
    assert read == chat.conversation.prompt_tokens
    assert chat.conversation.read_again > 20
    assert chat.conversation.reason == "the last turn was broken off"
    chat.turn(FIRST, REPLIES[0])
    assert chat.conversation.reason == ""


def leaves(layers):
    for c in layers:
        yield from leaves(c.caches) if isinstance(c, CacheList) else (c,)


def copies_of(chat) -> list:
    kept = chat.conversation._cache._copies.values()
    return [copy for copies in kept for _, copy in copies]


def test_only_what_cannot_be_cut_is_copied_and_twice_at_most(model, tokenizer):
    chat = Chat(model, tokenizer)
    for question, reply in zip(QUESTIONS, REPLIES, strict=True):
        chat.turn(question, reply)
        copies = copies_of(chat)
        assert copies
        assert not any(isinstance(copy, KVCache) for copy in copies)
        fixed = [c for c in leaves(chat.conversation._cache.layers)]
        fixed = [c for c in fixed if not isinstance(c, KVCache)]
        assert len(copies) <= 2 * len(fixed)


def test_nothing_is_copied_of_what_can_be_cut(tokenizer):
    changes = {"sliding_window": 4096}
    for name, config in (("qwen3", LLAMA), ("gemma3_text", {**GEMMA3, **changes})):
        model = build(name, dict(config, vocab_size=tokenizer.vocab_size))
        chat = Chat(model, tokenizer)
        for question, reply in zip(QUESTIONS, REPLIES, strict=True):
            read, new = chat.turn(question, reply)
            assert read == new
            assert not copies_of(chat)


def test_a_window_is_copied_when_a_reply_is_about_to_overflow_it(tokenizers):
    model = built("gemma3_text", sliding_window=160)
    chat = Chat(model, tokenizers["drops"], max_tokens=200)
    long = "1 + 1 = 2\n" * 20 + "</think>\n\nThe answer is 2."
    chat.turn(FIRST, REPLIES[0])
    assert not copies_of(chat)
    chat.turn(SECOND, long)
    windows = [
        c for c in chat.conversation._cache.layers if isinstance(c, RotatingKVCache)
    ]
    assert windows and not can_trim_prompt_cache(windows)
    assert len(copies_of(chat)) == len(windows)
    read, new = chat.turn(QUESTIONS[2], REPLIES[2])
    assert read == new


def test_a_cache_knows_what_it_holds_at_the_end_of_each_turn(tokenizer):
    chat = Chat(built("qwen3_next"), tokenizer)
    for question, reply in zip(QUESTIONS, REPLIES, strict=True):
        chat.turn(question, reply, stop_after=7 if question == SECOND else None)
        cache = chat.conversation._cache
        offsets = {c.offset for c in cache.layers if not isinstance(c, ArraysCache)}
        assert offsets == {len(cache.tokens)}
        assert cache.tokens == chat.fed


def test_an_empty_cache_shares_nothing(model):
    cache = ConversationCache(model)
    assert cache.cut_to([1, 2, 3]) == 0
    assert cache.read_again == 0
