"""Rows of a batch share the predictor's encoder, whoever joins, leaves or errs."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from mlx.utils import tree_map
from mlx_lm.generate import BatchGenerator

from counting import counting
from golden_run import golden_run
from mlx_budget import Predictor, make_budget_sampler
from mlx_budget.engine.recorder import active_recorder
from mlx_budget.engine.sampler import BudgetSampler
from mlx_budget.method import candidates
from mlx_budget.method.encoder_predictor import EncoderPredictor

EOS = 2


@dataclass
class Pass:
    """What happened after one forward pass.

    Attributes:
        size: Number of rows.
        guided: Requests whose token was chosen under guidance, in their order.
        encodings: The predictor and the rows of each encoding.
        evaluations: The same of each evaluation of all rows of the heads.
    """

    size: int
    guided: list[int] = field(default_factory=list)
    encodings: list[tuple[str, int]] = field(default_factory=list)
    evaluations: list[tuple[str, int]] = field(default_factory=list)


class Watch:
    """The one-token forward passes of a model, and what its requests make of them.

    Attributes:
        passes: As they come.
        samplers: Those of the requests to watch.
    """

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.samplers: dict[int, BudgetSampler] = {}
        self._seen: dict[int, int] = {}

    def predictor(self, predictor: Predictor, name: str = "ours") -> Predictor:
        """The predictor, watched."""
        return counting(
            predictor,
            lambda rows: self.passes[-1].encodings.append((name, rows)),
            lambda rows: self.passes[-1].evaluations.append((name, rows)),
        )

    def begin(self, size: int) -> None:
        self.settle()
        self.passes.append(Pass(size))

    def settle(self) -> None:
        """Notes which requests were guided since the last pass began."""
        for uid, sampler in self.samplers.items():
            if len(sampler.guided_steps) > self._seen.get(uid, 0):
                self._seen[uid] = len(sampler.guided_steps)
                self.passes[-1].guided.append(uid)


@pytest.fixture
def watch(loaded, monkeypatch) -> Watch:
    watch, kind = Watch(), type(loaded[0])
    call = kind.__call__

    @functools.wraps(call)
    def watched(self, inputs, *args, **kwargs):
        if inputs.shape[1] == 1:
            watch.begin(inputs.shape[0])
        return call(self, inputs, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", watched)
    return watch


class Batch:
    """Requests in the stock batch generator; each sampler is closed with its reply."""

    def __init__(self, loaded, watch: Watch, batch_size: int = 12):
        self.model, self.tokenizer, predictor = loaded
        self.predictor = watch.predictor(predictor)
        self.watch = watch
        self.generator = BatchGenerator(
            self.model,
            stop_tokens=[[EOS]],
            completion_batch_size=batch_size,
            prefill_batch_size=batch_size,
        )
        self.samplers, self.tokens = {}, {}

    def make_sampler(
        self, case: dict, predictor: Predictor | None = None, **options
    ) -> BudgetSampler:
        """The sampler of a golden case; its budget and so on may be others."""
        options = {"thinking_budget": case["budget"], **options}
        return make_budget_sampler(
            self.model,
            self.tokenizer,
            predictor or self.predictor,
            prompt=case["prompt_ids"],
            hard_stop=None,
            **options,
        )

    def insert(
        self,
        case: dict,
        predictor: Predictor | None = None,
        sampler: BudgetSampler | None = None,
        **options,
    ) -> int:
        """Inserts a golden case, with a sampler of its own if none is given."""
        sampler = sampler or self.make_sampler(case, predictor, **options)
        (uid,) = self.generator.insert(
            [case["prompt_ids"]], [case["max_new"]], samplers=[sampler]
        )
        self.samplers[uid] = self.watch.samplers[uid] = sampler
        self.tokens[uid] = []
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
        self.watch.settle()
        self.generator.close()
        for sampler in self.samplers.values():
            sampler.close()
        assert active_recorder(self.model) is None


def picked(cases: dict[str, dict], ids: Iterable[str]) -> list[dict]:
    return [cases[i] for i in ids]


MIXED = ["p0_b5", "p2_b40", "p1_b1000", "p0_b200", "p2_b1000"]


def assert_shared(passes: list[Pass]) -> None:
    """A pass without guided rows encodes nothing; any other all of them at once."""
    for p in passes:
        assert p.encodings == ([("ours", len(p.guided))] if p.guided else [])


@pytest.mark.parametrize("batch_size", [3, 12])
def test_each_pass_encodes_its_guided_rows_once_and_together(
    loaded, cases, watch, batch_size
):
    batch = Batch(loaded, watch, batch_size)
    uids = {batch.insert(case): case for case in cases.values()}
    batch.run()
    for uid, case in uids.items():
        assert batch.tokens[uid] == case["guided_tokens"]
    passes = watch.passes
    assert_shared(passes)
    guided = sum(len(s.guided_steps) for s in batch.samplers.values())
    assert sum(rows for p in passes for _, rows in p.encodings) == guided
    # The test means nothing unless rows were shared, and others left out.
    assert any(1 < len(p.guided) < p.size for p in passes)
    assert any(not p.guided for p in passes)
    assert len({p.size for p in passes}) >= 3


def test_the_first_pass_of_a_batch_is_shared(loaded, cases, watch):
    batch = Batch(loaded, watch)
    uids = [batch.insert(case) for case in picked(cases, MIXED)]
    batch.step()
    batch.close()
    assert watch.passes[0].guided == uids
    assert watch.passes[0].encodings == [("ours", 5)]


def test_a_row_alone_is_encoded_at_its_guided_steps_alone(loaded, cases, watch):
    model, tokenizer, predictor = loaded
    watched = model, tokenizer, watch.predictor(predictor)
    _, guided_steps = golden_run(watched, cases["p2_b40"])
    assert guided_steps == cases["p2_b40"]["guided_steps"]
    passes = watch.passes
    assert [bool(p.encodings) for p in passes[: guided_steps[-1] + 1]] == [
        step in guided_steps for step in range(guided_steps[-1] + 1)
    ]
    assert {rows for p in passes for _, rows in p.encodings} == {1}


@pytest.mark.parametrize(("gone", "close"), [(0, True), (2, False), (4, True)])
def test_a_row_that_is_removed_leaves_the_others_alone(
    loaded, cases, watch, gone, close
):
    batch = Batch(loaded, watch)
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


def test_a_sampler_that_is_dropped_with_its_row_leaves_the_others_alone(
    loaded, cases, watch
):
    batch = Batch(loaded, watch)
    uids = {batch.insert(case): case for case in picked(cases, MIXED)}
    for _ in range(15):
        batch.step()
    gone = list(uids)[1]
    batch.generator.remove([gone])
    del uids[gone], batch.samplers[gone], watch.samplers[gone]
    batch.run()
    for uid, case in uids.items():
        assert batch.tokens[uid] == case["guided_tokens"]


def test_requests_that_join_later_give_the_golden_tokens(loaded, cases, watch):
    batch, uids = Batch(loaded, watch), {}
    for case, steps in zip(picked(cases, MIXED), (1, 13, 2, 29, 0), strict=True):
        uids[batch.insert(case)] = case
        for _ in range(steps):
            batch.step()
    batch.run()
    for uid, case in uids.items():
        assert batch.tokens[uid] == case["guided_tokens"]
    assert_shared(watch.passes)
    assert max(len(p.guided) for p in watch.passes) > 1


def test_rows_without_a_budget_between_guided_rows_change_nothing(loaded, cases, watch):
    batch, free, guided = Batch(loaded, watch), {}, {}
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
    assert watch.passes[0].size == 10
    assert watch.passes[0].guided == list(guided)


def other_weights(predictor: Predictor) -> Predictor:
    """A predictor of the same sizes that prefers other tokens."""
    other = EncoderPredictor(predictor.config)
    other.update(tree_map(lambda w: w[::-1], predictor.parameters()))
    return other.eval()


@pytest.mark.parametrize("make", [other_weights, lambda p: p.quantize(8, 32)])
def test_each_row_follows_its_own_predictor(loaded, cases, watch, make):
    other = make(loaded[2])
    chosen = picked(cases, ["p0_b5", "p2_b40", "p0_b200"])
    alone = [golden_run((*loaded[:2], other), case)[0] for case in chosen]
    assert alone != [case["guided_tokens"] for case in chosen]
    watch.passes.clear()
    batch = Batch(loaded, watch)
    other = watch.predictor(other, "theirs")
    uids = [(batch.insert(c), batch.insert(c, other)) for c in chosen]
    batch.run()
    for (ours, theirs), case, tokens in zip(uids, chosen, alone, strict=True):
        assert batch.tokens[ours] == case["guided_tokens"]
        assert batch.tokens[theirs] == tokens
    assert watch.passes[0].encodings == [("ours", 3), ("theirs", 3)]
    for p in watch.passes:
        of_theirs = sum(uid in dict(uids).values() for uid in p.guided)
        want = {"ours": len(p.guided) - of_theirs, "theirs": of_theirs}
        assert len(p.encodings) == len(dict(p.encodings))
        assert dict(p.encodings) == {name: n for name, n in want.items() if n}


@pytest.mark.parametrize("backwards", [False, True])
def test_requests_that_can_be_taken_for_one_another_get_their_own_tokens(
    loaded, cases, watch, backwards
):
    other, case = other_weights(loaded[2]), cases["p2_b40"]
    theirs, _ = golden_run((*loaded[:2], other), case)
    watch.passes.clear()
    batch = Batch(loaded, watch)
    other = watch.predictor(other, "theirs")
    # One prompt, so that all feed the same tokens to the model at first.
    kinds = [
        ({}, case["guided_tokens"]),
        ({"thinking_budget": None}, case["plain_tokens"]),
        ({"predictor": other}, theirs),
        ({}, case["guided_tokens"]),
        ({"thinking_budget": None}, case["plain_tokens"]),
        ({"thinking_budget": 1000}, cases["p2_b1000"]["guided_tokens"]),
        ({"predictor": other}, theirs),
    ]
    # Samplers may be made in any order before their requests join.
    making = kinds[::-1] if backwards else kinds
    samplers = [batch.make_sampler(case, **options) for options, _ in making]
    samplers = samplers[::-1] if backwards else samplers
    uids = [batch.insert(case, sampler=sampler) for sampler in samplers]
    batch.run()
    for uid, (_, want) in zip(uids, kinds, strict=True):
        assert batch.tokens[uid][: len(want)] == want
    # A wrong guess at who is guided costs time alone, and never a second encoding.
    for p in watch.passes:
        encoded = sum(rows for _, rows in p.encodings)
        assert len(p.guided) <= encoded <= (p.size if p.guided else 0)


def test_rows_evaluate_the_whole_vocabulary_together_or_tokens_of_their_own(
    loaded, cases, watch, monkeypatch
):
    # Fewer than the vocabulary of the golden model has.
    monkeypatch.setattr(candidates, "CANDIDATES", 64)
    batch = Batch(loaded, watch)
    chosen = picked(cases, MIXED)
    whole = {batch.insert(case, guidance_tolerance=0): case for case in chosen}
    some = {batch.insert(case, guidance_tolerance=1): case for case in chosen}
    batch.run()
    for uid, case in {**whole, **some}.items():
        assert batch.tokens[uid] == case["guided_tokens"]
    for uid in whole:
        assert batch.samplers[uid].full_steps == batch.samplers[uid].guided_steps
    few = [(s.full_steps, s.guided_steps) for s in map(batch.samplers.get, some)]
    assert sum(len(full) for full, _ in few) < sum(len(guided) for _, guided in few)
    for p in watch.passes:
        # Once, for all rows that were encoded together.
        assert p.evaluations in ([], p.encodings)
        assert p.evaluations or not whole.keys() & set(p.guided)
