"""A golden case through the stock generation loop of mlx-lm."""

import mlx_lm

from mlx_budget import make_budget_sampler


def golden_run(parts, case: dict) -> tuple[list[int], list[int]]:
    """Tokens and guided steps of a case, guidance alone, as the reference has it."""
    model, tokenizer, predictor = parts
    prompt = case["prompt_ids"]
    sampler = make_budget_sampler(
        model,
        tokenizer,
        predictor,
        prompt=prompt,
        thinking_budget=case["budget"],
        hard_stop=None,
    )
    responses = mlx_lm.stream_generate(
        model, tokenizer, prompt, sampler=sampler, max_tokens=case["max_new"]
    )
    tokens = [r.token for r in responses]
    sampler.close()
    # The loop runs a step past the last token.
    return tokens, [step for step in sampler.guided_steps if step < len(tokens)]
