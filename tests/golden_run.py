"""Golden cases through the stock generation loops of mlx-lm."""

import mlx_lm
from mlx_lm.generate import BatchGenerator

from mlx_budget import make_budget_sampler


def golden_sampler(parts, case: dict):
    """The sampler of a case: guidance alone, as the reference has it."""
    return make_budget_sampler(
        *parts,
        prompt=case["prompt_ids"],
        thinking_budget=case["budget"],
        hard_stop=None,
    )


def golden_run(parts, case: dict) -> tuple[list[int], list[int]]:
    """Tokens and guided steps of a case, guidance alone, as the reference has it."""
    model, tokenizer, _ = parts
    prompt, sampler = case["prompt_ids"], golden_sampler(parts, case)
    responses = mlx_lm.stream_generate(
        model, tokenizer, prompt, sampler=sampler, max_tokens=case["max_new"]
    )
    tokens = [r.token for r in responses]
    sampler.close()
    # The loop runs a step past the last token.
    return tokens, [step for step in sampler.guided_steps if step < len(tokens)]


def golden_batch(
    parts, cases: list[dict], batch_size: int = 12
) -> list[tuple[list[int], list[int]]]:
    """The same of several cases in a batch, a fifth of the work of one by one."""
    model = parts[0]
    generator = BatchGenerator(
        model, completion_batch_size=batch_size, prefill_batch_size=batch_size
    )
    samplers = [golden_sampler(parts, case) for case in cases]
    uids = generator.insert(
        [case["prompt_ids"] for case in cases],
        [len(case["guided_tokens"]) for case in cases],
        samplers=samplers,
    )
    tokens = {uid: [] for uid in uids}
    while responses := generator.next_generated():
        for r in responses:
            tokens[r.uid].append(r.token)
    generator.close()
    found = []
    for uid, sampler in zip(uids, samplers, strict=True):
        sampler.close()
        # The loop runs a step past the last token.
        guided = [step for step in sampler.guided_steps if step < len(tokens[uid])]
        found.append((tokens[uid], guided))
    return found
