"""How the demo is trained: its sequences, its closes, and stages that go on."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from tokenizers import Tokenizer

from mlx_budget import batch_generate, demo, load
from mlx_budget.engine.closing import wind_down
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.thinking import find_markers
from recipes.demo import pretrain as pretraining
from recipes.demo import sequences
from recipes.demo.chat import (
    SPECIAL,
    make_tokenizer,
)
from recipes.demo.exchanges import OTHER_ANSWER
from recipes.demo.make import TIMES_FILE, quantise, timed
from recipes.demo.reasoning import FINAL, HABITS, OPENINGS
from recipes.demo.sequences import MESSAGES, Pool, Stage, close

SURE = HABITS.sure()
QUESTION = "What is 7 + 1 + 5 - 9 + 8?"
RESULT = re.compile(r"^Quickly: .*\.$|, so -?\d+\.$", re.M)


@pytest.fixture(scope="module")
def model():
    return load("demo")


# Sizes that are trained in no time.
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


def pretrain_briefly(folder: Path, progress=lambda *_: None) -> None:
    """Two updates of a small model on a few sequences, from where it was stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "SHAPE", {**pretraining.SHAPE, **SMALL})
        for module in (pretraining, sequences):
            patch.setattr(module, "BATCH_SIZE", 4)
        pretraining.pretrain(
            folder,
            folder.parent / "work",
            Stage(2, 1e-3, seed=0),
            save_every=1,
            progress=progress,
        )


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """A folder with a tokenizer and a model of two updates."""
    folder = tmp_path_factory.mktemp("raw") / "model"
    make_tokenizer(folder, texts=200)
    pretrain_briefly(folder)
    return folder


def rows(pool: Pool, steps: int) -> Iterator[tuple[list[int], list[float]]]:
    """Tokens of each sequence of the first steps, and what each counts."""
    for step in range(steps):
        yield from zip(*(part.tolist() for part in pool.batch(step)), strict=True)


def test_pretraining_goes_on_where_it_was_stopped(raw, tmp_path):
    folder = tmp_path / "model"
    make_tokenizer(folder, texts=200)

    class Stop(Exception):
        pass

    def stop(step, loss, rate):
        if step == 2:
            raise Stop

    with pytest.raises(Stop):
        pretrain_briefly(folder, stop)
    seen = []
    pretrain_briefly(folder, lambda step, *_: seen.append(step))
    assert seen == [2]
    one, two = (mx.load(str(f / "model.safetensors")) for f in (raw, folder))
    assert one.keys() == two.keys()
    assert all(mx.allclose(one[k], two[k], rtol=1e-4, atol=1e-6) for k in one)


def test_batches_are_the_same_whenever_they_are_asked_for(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    first = Pool(tokenizer, Stage(20, 1e-3, seed=0))
    earlier = [first.batch(step) for step in (0, 9)]
    tokens, wanted = Pool(tokenizer, Stage(20, 1e-3, seed=0)).batch(9)
    assert mx.array_equal(tokens, earlier[1][0])
    assert mx.array_equal(wanted, earlier[1][1])
    row = tokens[0].tolist()
    start = wanted[0].tolist().index(1)
    assert tokenizer.decode(row[:start]).endswith("assistant\n\n")
    assert not mx.array_equal(
        Pool(tokenizer, Stage(20, 1e-3, seed=1)).batch(9)[0], tokens
    )


def test_questions_come_behind_others_of_the_same_chat(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    tokens, wanted = Pool(tokenizer, Stage(20, 1e-3, seed=0, earlier=1.0)).batch(0)
    for row, mask in zip(tokens.tolist(), wanted.tolist(), strict=True):
        asked = tokenizer.decode(row[: mask.index(1)], skip_special_tokens=False)
        assert 2 <= asked.count("<|im_start|>user") <= 4
        question = asked.rpartition("user\n")[2]
        reply = tokenizer.decode(row[mask.index(1) :])
        if OTHER_ANSWER not in reply:
            digits = re.findall(r"\d", reply.partition("\n")[0])
            assert digits and re.findall(r"\d", question)[: len(digits)] == digits


def test_totals_that_slip_count_less(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    pool = Pool(tokenizer, Stage(20, 1e-3, seed=0))
    count, slipped = 0, []
    for step in range(8):
        tokens, wanted = (part.tolist() for part in pool.batch(step))
        count += len(tokens)
        for row, mask in zip(tokens, wanted, strict=True):
            less = [t for t, w in zip(row, mask, strict=True) if 0 < w < 1]
            slipped += [tokenizer.decode(less)] if less else []
    assert 0 < len(slipped) < count
    assert all(text.replace(" ", "").isdigit() for text in slipped)


def test_totals_of_careful_lines_count_more(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    pool = Pool(tokenizer, Stage(20, 1e-3, seed=0, careful_weight=4.0, habits=SURE))
    lines = 0
    for row, mask in rows(pool, 2):
        reply = tokenizer.decode(row[mask.index(1) :])
        totals = re.findall(r"^(?:Next|Wait).* = (-?\d+), so", reply, re.M)
        more = [t for t, w in zip(row, mask, strict=True) if w == 4]
        assert tokenizer.decode(more).replace(" ", "") == "".join(totals)
        lines += len(totals)
    assert lines > 20


def test_of_closed_thinking_only_the_answer_is_learnt(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    pool = Pool(tokenizer, Stage(20, 1e-3, seed=0, closed=1.0))
    messages = [message for message, _ in MESSAGES]
    answers, endings = set(), set()
    for row, mask in rows(pool, 16):
        learnt = [t for t, w in zip(row, mask, strict=True) if w]
        read = tokenizer.decode(row[: mask.index(1)], skip_special_tokens=False)
        text = tokenizer.decode(learnt, skip_special_tokens=False)
        said = re.fullmatch(r"(The answer is|My guess is|I can only) .*", text)
        answers.add(said[1])
        assert text.endswith(".<|im_end|>") and read.endswith("</think>\n\n")
        asked, _, thinking = read.rpartition("<|im_start|>assistant\n<think>\n")
        question = asked.rpartition("<|im_start|>user\n")[2]
        thinking = thinking.removesuffix("</think>\n\n")
        is_done = RESULT.search(thinking) is not None
        if said[1] == "My guess is":
            assert not is_done
        elif said[1] == "The answer is" and len(re.findall(r"\d", question)) > 2:
            assert is_done
        endings.add(next((m for m in messages if thinking.endswith(m)), ""))
    assert answers == {"The answer is", "My guess is", "I can only"}
    assert endings == {"", *messages}


def test_an_answer_goes_on_behind_a_stray_token_that_is_not_learnt(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    pool = Pool(tokenizer, Stage(20, 1e-3, seed=0, closed=1.0, strays=1.0))
    closing, places, strays = tokenizer.token_to_id("</think>"), set(), []
    for row, mask in rows(pool, 8):
        begin = len(row) - row[::-1].index(closing)
        while not tokenizer.decode([row[begin]]).strip():
            begin += 1  # the newlines that follow the marker
        learnt = [t for t, w in zip(row, mask, strict=True) if w]
        text = tokenizer.decode(learnt, skip_special_tokens=False)
        assert re.fullmatch(r"(The answer|My guess|I can) .*\.<\|im_end\|>", text)
        place = mask.index(0, begin)
        assert place < begin + len(learnt)
        places.add(place - begin)
        strays.append(row[place])
    assert 0 in places and len(places) > 3
    assert min(strays) >= len(SPECIAL)
    assert not any(re.search(r"\d", tokenizer.decode([stray])) for stray in strays)
    openings = {tokenizer.encode(word).ids[0] for word in OPENINGS}
    assert 0.4 < sum(stray in openings for stray in strays) / len(strays) < 0.65


def test_a_final_line_is_learnt_wherever_its_first_token_is_put(raw):
    tokenizer = Tokenizer.from_file(str(raw / "tokenizer.json"))
    pool = Pool(tokenizer, Stage(20, 1e-3, seed=0, closed=1.0, finals=1.0))
    opened = tokenizer.encode(FINAL).ids[0]
    lines, answers = set(), set()
    for row, mask in rows(pool, 8):
        begin = mask.index(1)
        assert row[begin - 1] == opened
        read = tokenizer.decode(row[: begin - 1], skip_special_tokens=False)
        thinking = read.rpartition("<think>\n")[2]
        assert not thinking or thinking.endswith("\n")
        assert FINAL not in thinking
        lines.add(thinking.count("\n"))
        learnt = [t for t, w in zip(row, mask, strict=True) if w]
        text = tokenizer.decode([opened, *learnt], skip_special_tokens=False)
        said = re.fullmatch(
            re.escape(f"{FINAL}\n</think>\n\n")
            + r"(The answer is|My guess is|I can only) .*\.<\|im_end\|>",
            text,
        )
        answers.add(said[1])
        if said[1] == "My guess is":
            assert not RESULT.search(thinking)
    assert {0, 1, 2, 3} <= lines
    assert answers == {"The answer is", "My guess is", "I can only"}


@pytest.mark.parametrize("message", ["", *(message for message, _ in MESSAGES)])
def test_the_engine_closes_as_the_model_was_taught(model, message):
    budgets = [0, 1, 3, 12, 30]
    replies = batch_generate(
        *model[:2],
        [encode_chat(model[1], QUESTION)] * len(budgets),
        predictor=False,
        thinking_budget=budgets,
        thinking_budget_message=message or None,
        hard_stop=1.0,
        max_tokens=160,
    ).replies
    own = Tokenizer.from_file(str(demo.FOLDER / "tokenizer.json"))
    for budget, reply in zip(budgets, replies, strict=True):
        taught = close(own, list(reply.tokens[:budget]), message)
        assert list(reply.tokens[: len(taught)]) == taught


def test_the_sentence_of_its_family_is_among_those_that_it_was_taught(model):
    sentence = wind_down(model[1], find_markers(model[1])).text
    assert sentence in [message for message, _ in MESSAGES]
    assert all(message.endswith("\n") for message, _ in MESSAGES)


def test_quantising_leaves_what_the_model_says(raw, tmp_path):
    quantise(raw, None, tmp_path / "8")
    ids = mx.array([[5, 6, 7]])
    logits = [mlx_lm.load(str(f))[0](ids) for f in (raw, tmp_path / "8")]
    assert not mx.array_equal(*logits)
    assert mx.abs(logits[0] - logits[1]).max() < 0.05 * mx.abs(logits[0]).max()


def test_times_of_a_stage_add_up_and_outlive_a_kill(tmp_path, monkeypatch):
    def kept() -> float:
        return json.loads((tmp_path / TIMES_FILE).read_text())["one"]["seconds"]

    # The clock is read when a stage begins, when it may be time to save, and to save.
    clock = iter([0.0, 1.0, 6.0, 6.0, 6.5, 9.0, 20.0, 22.5])
    monkeypatch.setattr(time, "perf_counter", clock.__next__)
    with timed(tmp_path, "one") as keep:
        keep()  # too soon to write
        assert not (tmp_path / TIMES_FILE).exists()
        keep()
        assert kept() == 6.0
    assert kept() == 9.0
    with pytest.raises(KeyboardInterrupt), timed(tmp_path, "one"):
        raise KeyboardInterrupt
    assert kept() == 11.5
