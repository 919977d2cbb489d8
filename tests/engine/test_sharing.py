"""Rows of a batch share the predictor's encoder, whoever joins, leaves or errs."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import mlx.core as mx
import pytest
from mlx.utils import tree_map
from mlx_lm.generate import BatchGenerator

import mlx_budget.engine.sampler
from golden_run import golden_run
from mlx_budget import Predictor, make_budget_sampler
from mlx_budget.engine import sharing
from mlx_budget.engine.recorder import HiddenStateRecorder, active_recorder

EOS = 2


@dataclass
class Pass:
    """What happened after one forward pass.

    Attributes:
        size: Number of rows.
        guided: Rows that asked for a prediction.
        encodings: Rows of each call of the encoder.
    """

    size: int
    guided: list[int] = field(default_factory=list)
    encodings: list[list[int]] = field(default_factory=list)


@pytest.fixture
def passes(monkeypatch) -> list[Pass]:
    """The one-token forward passes of the test, as they come."""
    seen: list[Pass] = []
    begin, states = HiddenStateRecorder._begin, HiddenStateRecorder.states
    encode, predict = Predictor.encode, sharing.predict
    asked: list[list[int]] = []

    def spied_begin(self, args, kwargs):
        if args[0].shape[1] == 1:
            seen.append(Pass(args[0].shape[0]))
        begin(self, args, kwargs)

    def spied_states(self, rows):
        asked.append(list(rows))
        return states(self, rows)

    def spied_encode(self, hidden_states):
        rows = asked.pop()
        assert hidden_states.shape[0] == len(rows)
        seen[-1].encodings.append(rows)
        return encode(self, hidden_states)

    def spied_predict(member, recorder, row):
        seen[-1].guided.append(row)
        return predict(member, recorder, row)

    monkeypatch.setattr(HiddenStateRecorder, "_begin", spied_begin)
    monkeypatch.setattr(HiddenStateRecorder, "states", spied_states)
    monkeypatch.setattr(Predictor, "encode", spied_encode)
    monkeypatch.setattr(mlx_budget.engine.sampler, "predict", spied_predict)
    return seen


class Batch:
    """Requests in the stock batch generator; each sampler is closed with its reply."""

    def __init__(self, loaded, batch_size: int = 12):
        self.model, self.tokenizer, self.predictor = loaded
        self.generator = BatchGenerator(
            self.model,
            stop_tokens=[[EOS]],
            completion_batch_size=batch_size,
            prefill_batch_size=batch_size,
        )
        self.samplers, self.tokens = {}, {}

    def insert(self, case: dict, predictor: Predictor | None = None, **options) -> int:
        """Inserts a golden case; its budget, predictor and so on may be others."""
        options = {"thinking_budget": case["budget"], **options}
        sampler = make_budget_sampler(
            self.model,
            self.tokenizer,
            predictor or self.predictor,
            prompt=case["prompt_ids"],
            hard_stop=None,
            **options,
        )
        (uid,) = self.generator.insert(
            [case["prompt_ids"]], [case["max_new"]], samplers=[sampler]
        )
        self.samplers[uid], self.tokens[uid] = sampler, []
        return uid

    def step(self) -> bool:
        """One token for each row; whether there was any."""
        responses = self.generator.next_generated()
        for r in responses:
            self.tokens[r.uid].append(r.token)
            if r.finish_reason is not None:
                self.samplers[r.uid].close()
        return bool(responses)

    def run(self) -> None:
        while self.step():
            pass
        self.close()

    def close(self) -> None:
        self.generator.close()
        for sampler in self.samplers.values():
            sampler.close()
        assert active_recorder(self.model) is None


def picked(cases: dict[str, dict], ids: Iterable[str]) -> list[dict]:
    return [cases[i] for i in ids]


MIXED = ["p0_b5", "p2_b40", "p1_b1000", "p0_b200", "p2_b1000"]


@pytest.mark.parametrize("batch_size", [3, 12])
def test_each_pass_encodes_its_guided_rows_once_and_together(
    loaded, cases, passes, batch_size
):
    batch = Batch(loaded, batch_size)
    uids = {batch.insert(case): case for case in cases.values()}
    batch.run()
    for uid, case in uids.items():
        assert batch.tokens[uid] == case["guided_tokens"]
    # A pass without guided rows encodes nothing; any other all of them at once.
    assert all(p.encodings == ([p.guided] if p.guided else []) for p in passes)
    guided = sum(len(s.guided_steps) for s in batch.samplers.values())
    assert sum(len(rows) for p in passes for rows in p.encodings) == guided
    # The test means nothing unless rows were shared, and others left out.
    assert any(1 < len(p.guided) < p.size for p in passes)
    assert any(not p.guided for p in passes)
    assert len({p.size for p in passes}) >= 3


def test_the_first_pass_of_a_batch_is_shared(loaded, cases, passes):
    batch = Batch(loaded)
    for case in picked(cases, MIXED):
        batch.insert(case)
    batch.step()
    batch.close()
    assert passes[0].encodings == [[0, 1, 2, 3, 4]] == [passes[0].guided]


def test_a_row_alone_is_encoded_at_its_guided_steps_alone(loaded, cases, passes):
    _, guided_steps = golden_run(loaded, cases["p2_b40"])
    assert [bool(p.encodings) for p in passes[: guided_steps[-1] + 1]] == [
        step in guided_steps for step in range(guided_steps[-1] + 1)
    ]
    assert {len(rows) for p in passes for rows in p.encodings} == {1}


@pytest.mark.parametrize(("gone", "close"), [(0, True), (2, False), (4, True)])
def test_a_row_that_is_removed_leaves_the_others_alone(loaded, cases, gone, close):
    batch = Batch(loaded)
    uids = {batch.insert(case): case for case in picked(cases, MIXED)}
    for _ in range(15):
        batch.step()
    gone = list(uids)[gone]
    batch.generator.remove([gone])
    if close:
        batch.samplers[gone].close()
    batch.run()
    for uid, case in uids.items():
        end = 15 if uid == gone else None
        assert batch.tokens[uid] == case["guided_tokens"][:end]


def test_a_sampler_that_is_dropped_with_its_row_leaves_the_others_alone(loaded, cases):
    batch = Batch(loaded)
    uids = {batch.insert(case): case for case in picked(cases, MIXED)}
    for _ in range(15):
        batch.step()
    gone = list(uids)[1]
    batch.generator.remove([gone])
    del uids[gone], batch.samplers[gone]
    batch.run()
    for uid, case in uids.items():
        assert batch.tokens[uid] == case["guided_tokens"]


def test_requests_that_join_later_give_the_golden_tokens(loaded, cases, passes):
    batch, uids = Batch(loaded), {}
    for case, steps in zip(picked(cases, MIXED), (1, 13, 2, 29, 0), strict=True):
        uids[batch.insert(case)] = case
        for _ in range(steps):
            batch.step()
    batch.run()
    for uid, case in uids.items():
        assert batch.tokens[uid] == case["guided_tokens"]
    assert all(p.encodings == ([p.guided] if p.guided else []) for p in passes)
    assert max(len(p.guided) for p in passes) > 1


def test_rows_without_a_budget_between_guided_rows_change_nothing(
    loaded, cases, passes
):
    batch, free, guided = Batch(loaded), {}, {}
    for case in picked(cases, MIXED):
        # The same prompt without a budget: its inputs may be taken for the other's.
        free[batch.insert(case, thinking_budget=None)] = case
        guided[batch.insert(case)] = case
    batch.run()
    for uid, case in guided.items():
        assert batch.tokens[uid] == case["guided_tokens"]
    for uid, case in free.items():
        plain = case["plain_tokens"]
        assert batch.tokens[uid][: len(plain)] == plain
    # Rows without a budget have the even numbers in the first pass.
    assert passes[0].guided == [1, 3, 5, 7, 9]


def other_weights(predictor: Predictor) -> Predictor:
    """A predictor of the same sizes that prefers other tokens."""
    other = Predictor(predictor.config)
    other.update(tree_map(lambda w: w[::-1], predictor.parameters()))
    return other.eval()


@pytest.mark.parametrize("make", [other_weights, lambda p: p.quantize(8, 32)])
def test_each_row_follows_its_own_predictor(loaded, cases, passes, make):
    other = make(loaded[2])
    chosen = picked(cases, ["p0_b5", "p2_b40", "p0_b200"])
    alone = [golden_run((*loaded[:2], other), case)[0] for case in chosen]
    assert alone != [case["guided_tokens"] for case in chosen]
    passes.clear()
    batch = Batch(loaded)
    uids = [(batch.insert(c), batch.insert(c, other)) for c in chosen]
    batch.run()
    for (ours, theirs), case, tokens in zip(uids, chosen, alone, strict=True):
        assert batch.tokens[ours] == case["guided_tokens"]
        assert batch.tokens[theirs] == tokens
    assert passes[0].encodings == [[0, 2, 4], [1, 3, 5]]
    for p in passes:
        assert len(p.encodings) <= 2
        assert sorted(row for rows in p.encodings for row in rows) == sorted(p.guided)


def foresees_nothing(member, recorder, row) -> list[int]:
    return []


def foresees_everything(member, recorder, row) -> list[int]:
    return list(range(row + 1, recorder.inputs.shape[0]))


@pytest.mark.parametrize("foresight", [foresees_nothing, foresees_everything])
def test_wrong_foresight_costs_time_alone(
    loaded, cases, passes, monkeypatch, foresight
):
    other, case = other_weights(loaded[2]), cases["p2_b40"]
    want, _ = golden_run((*loaded[:2], other), case)
    passes.clear()
    monkeypatch.setattr(sharing, "_guided_later", foresight)
    batch = Batch(loaded)
    uids = {batch.insert(case): case for case in picked(cases, MIXED)}
    last = batch.insert(case, other)
    batch.run()
    for uid, case in uids.items():
        assert batch.tokens[uid] == case["guided_tokens"]
    assert batch.tokens[last] == want
    encoded = sum(len(rows) for p in passes for rows in p.encodings)
    guided = sum(len(p.guided) for p in passes)
    if foresight is foresees_nothing:
        assert encoded == guided == sum(len(p.encodings) for p in passes)
    else:
        assert all(len(p.encodings) <= 2 for p in passes)
        assert encoded > guided


def test_an_encoding_belongs_to_its_row_whatever_others_it_covers(loaded, golden_steps):
    predictor = loaded[2]
    states = mx.array(golden_steps["hidden"][:4])

    class Recorder:
        def states(self, rows):
            return states[mx.array(rows)]

    shared = sharing.SharedPrediction(predictor, Recorder(), [3, 1])
    assert [row in shared for row in range(4)] == [False, True, False, True]
    tokens = mx.array([[5, 0, 447]])
    for row in (1, 3):
        want = predictor.head_outputs(predictor.encode(states[row : row + 1]))
        full = shared.head_outputs(row, None)
        some = shared.head_outputs(row, tokens)
        for w, f, s in zip(want, full, some, strict=True):
            # float32 sums in another order; the outputs reach +-60.
            assert f.shape == (1, 448) and s.shape == (1, 3)
            assert mx.abs(f - w).max().item() < 1e-3
            assert mx.abs(s - w[:, tokens[0]]).max().item() < 1e-3
