"""Budget samplers in the stock batch generator of mlx-lm."""

import gc

import mlx_lm
import pytest
from mlx_lm.generate import BatchGenerator, GenerationBatch
from mlx_lm.sample_utils import make_sampler

from golden_run import golden_batch, golden_sampler
from mlx_budget import make_budget_sampler
from mlx_budget.engine.recorder import active_recorder


@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_batch_equals_single_runs(loaded, cases, batch_size):
    # One by one they take long; six are two prompts, with all the budgets.
    chosen = list(cases.values())[: 6 * batch_size]
    found = golden_batch(loaded, chosen, batch_size)
    assert found == [(case["guided_tokens"], case["guided_steps"]) for case in chosen]


def batch_of_two(model, tokenizer, case, other_sampler) -> list[int]:
    sampler = other_sampler(prompt=case["prompt_ids"])
    generator = BatchGenerator(model)
    uids = generator.insert(
        [case["prompt_ids"]] * 2, [48, 48], samplers=[sampler[0], sampler[1]]
    )
    tokens = {uid: [] for uid in uids}
    try:
        while responses := generator.next_generated():
            for r in responses:
                tokens[r.uid].append(r.token)
    finally:
        generator.close()
        sampler[1].close()
    return [tokens[uid] for uid in uids]


def test_a_row_without_a_budget_shares_the_batch(loaded, cases):
    model, tokenizer, predictor = loaded
    case = cases["p0_b40"]

    def samplers(prompt):
        free = make_budget_sampler(model, tokenizer, prompt=prompt)
        budget = make_budget_sampler(
            model, tokenizer, predictor, prompt=prompt, thinking_budget=40
        )
        return free, budget

    free, _ = batch_of_two(model, tokenizer, case, samplers)
    assert free == case["plain_tokens"][:48]


def test_a_row_with_a_stock_sampler_is_an_error(loaded, cases):
    model, tokenizer, predictor = loaded

    def samplers(prompt):
        budget = make_budget_sampler(
            model, tokenizer, predictor, prompt=prompt, thinking_budget=40
        )
        return make_sampler(temp=0.5), budget

    with pytest.raises(ValueError, match="Only 1 of 2 rows.*thinking_budget=None"):
        batch_of_two(model, tokenizer, cases["p0_b40"], samplers)


@pytest.mark.parametrize(("rows", "budgets"), [(3, 1), (3, 2), (5, 2)])
def test_the_rows_that_have_a_budget_sampler_are_counted(loaded, cases, rows, budgets):
    model, tokenizer, _ = loaded
    prompt = cases["p0_b40"]["prompt_ids"]
    samplers = [make_sampler(temp=0.5) for _ in range(rows)]
    for i in range(budgets):
        samplers[i] = make_budget_sampler(
            model, tokenizer, False, prompt=prompt, thinking_budget=40
        )
    generator = BatchGenerator(model)
    generator.insert([prompt] * rows, samplers=samplers)
    with pytest.raises(ValueError, match=f"Only {budgets} of {rows} rows of the batch"):
        while generator.next_generated():
            pass
    generator.close()
    for sampler in samplers[:budgets]:
        sampler.close()


def test_a_batch_without_any_budget_runs_beside_an_open_sampler(loaded, cases):
    model, tokenizer, predictor = loaded
    chosen = [cases["p0_b40"], cases["p1_b40"]]
    prompts = [case["prompt_ids"] for case in chosen]
    sampler = make_budget_sampler(
        model, tokenizer, predictor, prompt=prompts[0], thinking_budget=40
    )
    generator = BatchGenerator(model)
    uids = generator.insert(prompts, [20, 20], samplers=[make_sampler()] * 2)
    tokens = {uid: [] for uid in uids}
    while responses := generator.next_generated():
        for r in responses:
            tokens[r.uid].append(r.token)
    generator.close()
    for uid, case in zip(uids, chosen, strict=True):
        assert tokens[uid] == case["plain_tokens"][:20]
    # The sampler has seen none of it.
    responses = mlx_lm.stream_generate(
        model, tokenizer, prompts[0], sampler=sampler, max_tokens=20
    )
    assert [r.token for r in responses] == chosen[0]["guided_tokens"][:20]
    sampler.close()


def test_one_sampler_for_a_whole_batch_is_an_error(loaded, cases):
    model, tokenizer, predictor = loaded
    case = cases["p0_b40"]
    sampler = make_budget_sampler(
        model, tokenizer, predictor, prompt=case["prompt_ids"], thinking_budget=40
    )
    generator = BatchGenerator(model)
    generator.insert([case["prompt_ids"]] * 2, samplers=[sampler] * 2)
    with pytest.raises(ValueError, match="sampler (per|for each) request"):
        generator.next_generated()
    generator.close()
    sampler.close()


def test_mlx_lms_batch_is_as_it_was_when_the_last_sampler_is_closed(loaded):
    model, tokenizer, predictor = loaded
    step = GenerationBatch._step
    first, second, third = (
        make_budget_sampler(
            model, tokenizer, predictor, prompt=[5], thinking_budget=budget
        )
        for budget in (40, 40, 9)
    )
    assert GenerationBatch._step is not step
    first.close()
    first.close()  # once more does no harm
    second.close()
    assert GenerationBatch._step is not step
    del third  # as good as closed
    gc.collect()
    assert GenerationBatch._step is step


@pytest.mark.parametrize("batch_size", [1, 3])
def test_samplers_may_be_wrapped_in_functions(loaded, cases, batch_size):
    model, tokenizer, predictor = loaded
    chosen = [cases["p0_b40"], cases["p1_b200"], cases["p2_b5"]]
    samplers = [golden_sampler(loaded, case) for case in chosen]
    generator = BatchGenerator(model, completion_batch_size=batch_size)
    uids = generator.insert(
        [case["prompt_ids"] for case in chosen],
        [30] * 3,
        samplers=[lambda logprobs, s=s: s(logprobs) for s in samplers],
    )
    tokens = {uid: [] for uid in uids}
    while responses := generator.next_generated():
        for r in responses:
            tokens[r.uid].append(r.token)
    generator.close()
    for sampler in samplers:
        sampler.close()
    wanted = [case["guided_tokens"][:30] for case in chosen]
    assert [tokens[uid] for uid in uids] == wanted


def test_an_mlx_lm_whose_batch_has_changed_is_named(loaded, monkeypatch):
    model, tokenizer, _ = loaded
    monkeypatch.delattr(GenerationBatch, "_step")
    with pytest.raises(ValueError, match="GenerationBatch has changed. Install anot"):
        make_budget_sampler(model, tokenizer, False, prompt=[5], thinking_budget=9)
    assert active_recorder(model) is None
