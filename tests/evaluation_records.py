"""Records of replies that were never generated, to be measured."""


def record(
    strategy: str, tokens_allowed: int | None, problem: int, tokens: int, **fields
):
    """A finished reply; right unless the tokens are a multiple of 3."""
    counts = {
        "thinking_tokens": tokens,
        "after_close_tokens": 0,
        "answer_tokens": 5,
        "forced_tokens": 0,
        "marker_tokens": 1,
        "probe_tokens": 0,
    }
    counts.update({name: fields.pop(name) for name in counts if name in fields})
    return {
        "strategy": strategy,
        "budget": None if tokens_allowed is None else str(tokens_allowed),
        "thinking_budget": tokens_allowed,
        "problem": str(problem),
        "sample": 0,
        **counts,
        "total_tokens": sum(counts.values()),
        "closed_by": "model",
        "finish_reason": "stop",
        "predicted_tokens": 50.0 + problem,
        "correct": tokens % 3 > 0,
        "grading_problem": None,
        "seconds": 0.1,
        **fields,
    }
