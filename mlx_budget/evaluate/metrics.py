"""What the replies of one arm, or of two, amount to: accuracy, length, cost, intervals.

Knows records as dicts and their numbers; nothing of models, strategies or files.
P is the number of problems. All intervals are of 95 %.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..engine.tags import TAGS
from ..files.records import Record
from .paired import Z, mcnemar_p, tango_interval

RESAMPLES = 10_000

# What a record counts, thinking aside; the last is all of it, thinking included.
TOKEN_COUNTS = (
    "after_close_tokens",
    "answer_tokens",
    "forced_tokens",
    "marker_tokens",
    "probe_tokens",
    "total_tokens",
)

# What is measured of many replies, as JSON has it.
Measures = dict[str, Any]

# Numbers drawn at a time by the bootstrap, to bound the memory.
_BLOCK = 1 << 20


def wilson_interval(correct: float, n: int) -> tuple[float, float]:
    """Interval of a share, from independent trials (Wilson, 1927, without continuity).

    Args:
        correct: Trials that succeeded, 0 to n.
        n: Trials.

    Returns:
        tuple[float, float]: Its ends, fractions from 0 to 1.

    Raises:
        ValueError: If there are no trials, or more or fewer successes than can be.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"There cannot be {correct} successes in {n} trials.")
    share, z2 = correct / n, Z * Z
    center = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and n one end is exact, which rounding would miss.
    low = 0.0 if correct == 0 else center - half
    high = 1.0 if correct == n else center + half
    return low, high


def accuracy_interval(
    correct: Sequence[bool], problems: Sequence[str], seed: int = 0
) -> tuple[float, float]:
    """Interval of an accuracy, where a problem may have been answered several times.

    With one answer a problem it is Wilson's. Answers to the same problem are not
    independent: with more, whole problems are drawn with replacement, `RESAMPLES`
    times, and the ends are the 2.5 % and 97.5 % quantiles of the accuracy (the cluster
    bootstrap). Where all problems have the same share of correct answers that interval
    would have no width, so it is Wilson's with one trial a problem instead.

    Args:
        correct: Whether each answer is correct, shape (n,).
        problems: The problem each one answers, shape (n,).
        seed: Of the bootstrap.

    Returns:
        tuple[float, float]: Its ends, fractions from 0 to 1.

    Raises:
        ValueError: If there are no answers, or not as many of both.
    """
    if len(correct) != len(problems):
        raise ValueError(f"{len(correct)} answers, but {len(problems)} problems.")
    right = np.asarray(correct, np.float64)
    totals = _totals_by_problem(problems, np.ones_like(right), right)  # (P, 2)
    if len(totals) == len(right):
        return wilson_interval(int(right.sum()), len(right))
    shares = totals[:, 1] / totals[:, 0]
    if np.all(shares == shares[0]):
        return wilson_interval(float(shares.sum()), len(shares))
    count, hits = _resampled_sums(totals, seed).T
    return _interval(hits / count)


def measure_arm(records: Sequence[Record]) -> Measures:
    """Measures the replies of one strategy at one budget.

    A reply whose thinking did not end counts with the tokens that it used.

    Args:
        records: Finished replies, one or more.

    Returns:
        dict: Of what JSON can hold; a number that is undefined is None. Shares and
        accuracies are fractions.

        - n, problems: replies, and different problems among them.
        - accuracy, accuracy_low, accuracy_high: see `accuracy_interval`.
        - thinking_tokens, thinking_p10, thinking_p90: mean and quantiles.
        - mean_budget: in tokens, of the replies that had a budget; so are the next.
        - over_budget: share that thought for more tokens than the budget.
        - excess_tokens, excess_share: of those, the mean number of tokens above the
          budget, and the mean of that number relative to the budget.
        - deviation: mean distance of the thinking tokens from the budget, on either
          side, relative to the budget.
        - closed_by_model, closed_by_budget, closed_by_loop, closed_by_exit: shares by
          what ended the thinking; the last is a trial answer.
        - unfinished: share whose thinking never ended; to answer without any thinking
          is not unfinished.
        - answer_tokens, after_close_tokens, forced_tokens, marker_tokens, probe_tokens:
          means. The second are of what was reasoned on behind the close, and neither
          thinking nor answer; forced ones were put in by the strategy; markers are
          those that the model wrote; probes were generated and thrown away.
        - total_tokens: mean of all of these and the thinking tokens together.
        - grading_problems: how many answers could not be graded.
        - tags: how many replies began with each of AdaCtrl's tags of their own accord.
        - seconds, tokens_per_second: of all of these together.
        - e3: accuracy squared by mean total tokens, the E3 of Plan-and-Budget
          (arXiv 2505.16122), with accuracy as a fraction; e3_thinking: by mean
          thinking tokens.

    Raises:
        ValueError: If there are no records.
    """
    if not records:
        raise ValueError("There are no replies to measure.")
    n = len(records)
    correct = [bool(r["correct"]) for r in records]
    problems = [r["problem"] for r in records]
    low, high = accuracy_interval(correct, problems)
    thinking = np.array([r["thinking_tokens"] for r in records], np.float64)
    p10, p90 = np.percentile(thinking, [10, 90])
    accuracy, mean_thinking = sum(correct) / n, float(thinking.mean())
    counts = {name: sum(r[name] for r in records) / n for name in TOKEN_COUNTS}
    seconds = float(sum(r["seconds"] for r in records))
    total = counts["total_tokens"]
    return {
        "n": n,
        "problems": len(set(problems)),
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "thinking_tokens": mean_thinking,
        "thinking_p10": float(p10),
        "thinking_p90": float(p90),
        **_measure_budget(records),
        **{
            f"closed_by_{who}": sum(r["closed_by"] == who for r in records) / n
            for who in ("model", "budget", "loop", "exit")
        },
        "unfinished": sum(_is_unfinished(r) for r in records) / n,
        **counts,
        "grading_problems": sum(r["grading_problem"] is not None for r in records),
        "tags": {
            tag: sum(r.get("tag") == tag and not r["tag_given"] for r in records)
            for tag in TAGS
        },
        "seconds": seconds,
        "tokens_per_second": n * total / seconds if seconds > 0 else None,
        "e3": accuracy**2 / total if total > 0 else None,
        "e3_thinking": accuracy**2 / mean_thinking if mean_thinking > 0 else None,
    }


def measure_anytime(records: Sequence[Record]) -> Measures | None:
    """The mean accuracy of anytime answers over their budgets, all counting alike.

    Of AnytimeReasoner (arXiv 2505.13438). Replies count that answered at every budget.

    Args:
        records: Of the strategy "anytime", at all its budgets.

    Returns:
        dict: budgets as they were asked for, n replies to the questions, accuracy,
        accuracy_low and accuracy_high, whose interval is of the cluster bootstrap over
        problems, see `accuracy_interval`. None without such replies.
    """
    budgets = {r["budget"]: r["thinking_budget"] for r in records}
    answers: dict[tuple, list[Record]] = {}
    for record in records:
        answers.setdefault((record["problem"], record["sample"]), []).append(record)
    whole = [found for found in answers.values() if len(found) == len(budgets)]
    counted = [record for found in whole for record in found]
    if not counted:
        return None
    correct = [bool(record["correct"]) for record in counted]
    low, high = accuracy_interval(correct, [r["problem"] for r in counted])
    return {
        "budgets": sorted(budgets, key=lambda label: (budgets[label] or 0, label)),
        "n": len(whole),
        "accuracy": sum(correct) / len(correct),
        "accuracy_low": low,
        "accuracy_high": high,
    }


def area_under_accuracy(
    points: Sequence[tuple[float, float]], max_tokens: float, min_tokens: float = 0
) -> float | None:
    """Mean accuracy over budgets, all budgets of a range being equally likely.

    The anytime measure of AnytimeReasoner (arXiv 2505.13438), with a uniform
    distribution of budgets: the area under the accuracy by the trapezoid rule, divided
    by the width of the range. The range begins at the first point, or at ``min_tokens``
    if that is later, since nothing is known of less, and ends at ``max_tokens``.
    Accuracy is linear between points, and stays what it is after the last: more
    budget need not be used. Points at the same number of tokens count as their mean.

    Strategies are comparable over the same range of the same quantity alone. Over the
    tokens that were used, one that uses few would be judged by a range of its own:
    give budgets, which are the same for all.

    Args:
        points: Tokens and accuracy, in any order.
        max_tokens: End of the range.
        min_tokens: Earliest beginning of the range.

    Returns:
        float: In the unit of the accuracies, or None if there are not two different
        numbers of tokens or the range is empty.
    """
    by_tokens: dict[float, list[float]] = {}
    for tokens, accuracy in points:
        by_tokens.setdefault(tokens, []).append(accuracy)
    if len(by_tokens) < 2:
        return None
    x = np.array(sorted(by_tokens), np.float64)
    y = np.array([np.mean(by_tokens[tokens]) for tokens in x])
    low, high = max(x[0], min_tokens), max_tokens
    if low >= high:
        return None
    knots = np.concatenate([[low], x[(x > low) & (x < high)], [high]])
    heights = np.interp(knots, x, y)
    area = np.sum(np.diff(knots) * (heights[1:] + heights[:-1]) / 2)
    return float(area / (high - low))


def area_over_tokens(points: Sequence[tuple[float, float]], max_tokens: float) -> float:
    """Mean accuracy over all numbers of tokens from 0 to a largest, equally likely.

    One range for all strategies, whatever each of them uses. Below its cheapest point
    a strategy cannot be run, and scores 0; between points accuracy is linear; behind
    the last it stays. Points at the same number of tokens count as their mean.

    Args:
        points: Mean total tokens and accuracy, one or more, in any order.
        max_tokens: End of the range, above 0.

    Returns:
        float: In the unit of the accuracies.
    """
    first, accuracy = min(points)
    if first >= max_tokens:
        return 0.0
    if len({tokens for tokens, _ in points}) < 2:
        accuracy = float(np.mean([accuracy for _, accuracy in points]))
        return accuracy * (max_tokens - first) / max_tokens
    area = area_under_accuracy(points, max_tokens) or 0.0
    return area * (max_tokens - first) / max_tokens


def paired_difference(
    a_records: Sequence[Record], b_records: Sequence[Record], seed: int = 0
) -> Measures | None:
    """Compares two arms on the problems and samples that both have answered.

    The interval of the accuracies' difference is Tango's score interval, see
    `paired.tango_interval`. Answers to the same problem are not independent: with
    several it is of the cluster bootstrap over problems, see `accuracy_interval`, which
    keeps pairs together, unless all problems differ alike, where it would have no width
    and Tango's with one pair a problem stands. The p-value is of McNemar's exact test,
    over problems: one with several answers counts as won or lost by its mean. The
    interval of the tokens is of the bootstrap.

    Args:
        a_records: Replies of the one arm.
        b_records: Replies of the other.
        seed: Of the bootstrap.

    Returns:
        dict: None if they have no pair, else of what JSON can hold:

        - n, problems: pairs, and different problems among them.
        - a_accuracy, b_accuracy, difference, difference_low, difference_high:
          fractions; above 0 where a is better.
        - wins, losses: pairs of which a alone, or b alone, is correct.
        - p_value: of the hypothesis that neither is better, not corrected.
        - a_total_tokens, b_total_tokens, tokens_difference, tokens_low, tokens_high:
          means of all tokens; below 0 where a takes less.
        - a_thinking_tokens, b_thinking_tokens: means.

    Raises:
        ValueError: If an arm has two replies to the same sample of a problem.
    """
    a_replies, b_replies = _by_sample(a_records), _by_sample(b_records)
    pairs = [(a_replies[k], b_replies[k]) for k in a_replies if k in b_replies]
    if not pairs:
        return None
    problems = [a["problem"] for a, _ in pairs]
    right, tokens, thinking = (
        np.array([(a[name], b[name]) for a, b in pairs], np.float64).T  # (2, n)
        for name in ("correct", "total_tokens", "thinking_tokens")
    )
    better, longer = right[0] - right[1], tokens[0] - tokens[1]
    totals = _totals_by_problem(problems, np.ones(len(pairs)), better, longer)
    count, sum_better, sum_longer = _resampled_sums(totals, seed).T
    tokens_low, tokens_high = _interval(sum_longer / count)
    shares = totals[:, 1] / totals[:, 0]  # (P,)
    if len(totals) == len(pairs) or np.all(shares == shares[0]):
        won, lost = (float(np.clip(sign * shares, 0, 1).sum()) for sign in (1, -1))
        low, high = tango_interval(won, lost, len(totals))
    else:
        low, high = _interval(sum_better / count)
    return {
        "n": len(pairs),
        "problems": len(totals),
        "a_accuracy": float(right[0].mean()),
        "b_accuracy": float(right[1].mean()),
        "difference": float(better.mean()),
        "difference_low": low,
        "difference_high": high,
        "wins": int((better > 0).sum()),
        "losses": int((better < 0).sum()),
        "p_value": mcnemar_p(int((shares > 0).sum()), int((shares < 0).sum())),
        "a_total_tokens": float(tokens[0].mean()),
        "b_total_tokens": float(tokens[1].mean()),
        "tokens_difference": float(longer.mean()),
        "tokens_low": tokens_low,
        "tokens_high": tokens_high,
        "a_thinking_tokens": float(thinking[0].mean()),
        "b_thinking_tokens": float(thinking[1].mean()),
    }


def _measure_budget(records: Sequence[Record]) -> Measures:
    limited = [r for r in records if r["thinking_budget"] is not None]
    pairs = [(r["thinking_tokens"], r["thinking_budget"]) for r in limited]
    over = [(tokens - budget, budget) for tokens, budget in pairs if tokens > budget]
    return {
        "mean_budget": _mean([budget for _, budget in pairs]),
        "over_budget": _mean([tokens > budget for tokens, budget in pairs]),
        "excess_tokens": _mean([excess for excess, _ in over]),
        # Nothing is a share of a budget of 0.
        "excess_share": _mean([excess / b for excess, b in over if b > 0]),
        "deviation": _mean([abs(tokens - b) / b for tokens, b in pairs if b > 0]),
    }


def _is_unfinished(record: Record) -> bool:
    is_answer = record["thinking_tokens"] == 0 and record["finish_reason"] == "stop"
    return record["closed_by"] is None and not is_answer


def _by_sample(records: Sequence[Record]) -> dict[tuple, Record]:
    replies = {(r["problem"], r["sample"]): r for r in records}
    if len(replies) < len(records):
        raise ValueError("An arm has two replies to the same sample of a problem.")
    return replies


def _totals_by_problem(problems: Sequence[str], *values: np.ndarray) -> np.ndarray:
    """Sums of k values by problem, in the order of their names, shape (P, k)."""
    _, index = np.unique(np.asarray(problems), return_inverse=True)
    return np.stack([np.bincount(index, weights=v) for v in values], axis=1)


def _resampled_sums(totals: np.ndarray, seed: int) -> np.ndarray:
    """Sums over P problems drawn with replacement: (P, k) to (RESAMPLES, k)."""
    # Whole numbers below 2 ** 24 are exact in float32, which is half the work.
    small = totals.astype(np.float32)
    sums = [times @ small for times in _times_drawn(len(totals), seed)]
    return np.concatenate(sums).astype(np.float64)


@lru_cache(maxsize=1)  # all comparisons of an evaluation draw the same
def _times_drawn(count: int, seed: int) -> list[np.ndarray]:
    """How often each of P problems is drawn, in parts, together (RESAMPLES, P)."""
    rng, rows, parts = np.random.default_rng(seed), max(1, _BLOCK // count), []
    for start in range(0, RESAMPLES, rows):
        m = min(rows, RESAMPLES - start)
        drawn = rng.integers(count, size=(m, count)) + count * np.arange(m)[:, None]
        times = np.bincount(drawn.ravel(), minlength=m * count)
        parts.append(times.reshape(m, count).astype(np.float32))
    return parts


def _interval(resampled: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low), float(high)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
