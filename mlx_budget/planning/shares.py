"""How a budget is split among the parts of a plan.

The schedules are those of Plan-and-Budget (arXiv 2505.16122, section 4.3 and its code).
Knows numbers alone.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

# Tokens for a question of each difficulty, 1 to 5, as the published code has them.
LEVEL_BUDGETS = (200, 250, 350, 450, 600)


def _cosine(i: int, n: int) -> float:
    return (1 + math.cos(math.pi * i / (n - 1))) / 2 + 0.1 if n > 1 else 1.0


# The weight of part i of n, i from 0.
SCHEDULES: dict[str, Callable[[int, int], float | Fraction]] = {
    "constant": lambda i, n: 1.0,
    "linear": lambda i, n: float(n - i),
    "polynomial": lambda i, n: float((n - i) ** 2),
    "exponential": lambda i, n: Fraction(9, 10) ** i,
    "cosine": _cosine,
}


def split(
    budget: int, credits: Sequence[float], schedule: str = "constant"
) -> list[int]:
    """Splits a budget among the parts of a plan.

    Part i gets ``budget * c_i * w_i / sum(c_j * w_j)``, rounded down, and what is left
    goes to the largest shares, one token each; of equal ones to the earlier.

    Args:
        budget (int): Tokens, 0 or more.
        credits (Sequence[float]): c, one for each part, 0 or more, not all 0.
        schedule (str): One of `SCHEDULES`, which gives w.

    Returns:
        list[int]: Tokens of each part; together they are the budget.

    Raises:
        ValueError: Naming what is not allowed.
    """
    if budget < 0:
        raise ValueError(f"The budget of a plan must be 0 or more, not {budget}.")
    weigh = SCHEDULES.get(schedule)
    if weigh is None:
        raise ValueError(
            f"schedule must be one of {', '.join(SCHEDULES)}, not {schedule!r}."
        )
    is_fine = all(math.isfinite(c) and c >= 0 for c in credits)
    if not is_fine or not any(credits):
        raise ValueError(
            f"The credits of a plan must be 0 or more and not all 0, not "
            f"{list(credits)}."
        )
    n = len(credits)
    # Fractions, so that no share is rounded down from just below a whole number.
    parts = [_exact(c) * _exact(weigh(i, n)) for i, c in enumerate(credits)]
    exact = [budget * part / sum(parts) for part in parts]
    shares = [math.floor(share) for share in exact]
    largest = sorted(range(n), key=lambda i: -exact[i])
    for i in largest[: budget - sum(shares)]:
        shares[i] += 1
    return shares


def _exact(number: float | Fraction) -> Fraction:
    """A number as it was meant: 0.6, not the nearest binary one."""
    return Fraction(number).limit_denominator(10**9)
