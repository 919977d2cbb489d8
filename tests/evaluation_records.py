"""Records of replies that were never generated, to be measured."""


def record(
    strategy: str, tokens_allowed: int | None, problem: int, tokens: int, **fields
):
    """A finished reply; right unless the tokens are a multiple of 3."""
    return {
        "strategy": strategy,
        "budget": None if tokens_allowed is None else str(tokens_allowed),
        "thinking_budget": tokens_allowed,
        "problem": str(problem),
        "sample": 0,
        "thinking_tokens": tokens,
        "answer_tokens": 5,
        "closed_by": "model",
        "finish_reason": "stop",
        "predicted_tokens": 50.0 + problem,
        "correct": tokens % 3 > 0,
        "grading_problem": None,
        "seconds": 0.1,
        **fields,
    }
