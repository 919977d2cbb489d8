"""Paired comparisons: against published examples and numbers worked out by hand."""

import pytest

from mlx_budget.evaluate.paired import Z, holm, mcnemar_p, tango_interval


@pytest.mark.parametrize(
    ("wins", "losses", "pairs", "low", "high"),
    [
        # Tango (1998), of the data of Newcombe (1998).
        (12, 2, 50, 0.0611, 0.3447),
        # Fagerland, Lydersen and Laake (2014), of Bentur et al. (2009).
        (1, 7, 21, -0.517, -0.026),
    ],
)
def test_tango_intervals_are_those_of_the_literature(wins, losses, pairs, low, high):
    digits = 4 if pairs == 50 else 3
    ends = [round(end, digits) for end in tango_interval(wins, losses, pairs)]
    assert ends == [low, high]


def test_no_difference_in_40_pairs_is_not_certain():
    low, high = tango_interval(0, 0, 40)
    # Without a loss the test statistic is n d / sqrt(n d (1 - d)).
    assert high == pytest.approx(Z**2 / (40 + Z**2))
    assert low == pytest.approx(-high)


@pytest.mark.parametrize(("wins", "losses"), [(8, 0), (5, 3), (0, 1), (3, 17)])
def test_intervals_are_mirrored_and_hold_what_was_seen(wins, losses):
    low, high = tango_interval(wins, losses, 20)
    assert -1 <= low < (wins - losses) / 20 < high <= 1
    assert tango_interval(losses, wins, 20) == pytest.approx((-high, -low))


def test_all_won_reaches_one():
    low, high = tango_interval(9, 0, 9)
    assert high == 1 and 0 < low < 1
    assert tango_interval(0, 9, 9) == pytest.approx((-1, -low))


@pytest.mark.parametrize(
    ("wins", "losses", "pairs"), [(0, 0, 0), (2, 2, 3), (-1, 0, 3)]
)
def test_impossible_pairs_are_refused(wins, losses, pairs):
    with pytest.raises(ValueError, match=f"{wins} wins and {losses} losses in {pairs}"):
        tango_interval(wins, losses, pairs)


def test_p_values_are_exact():
    # 1 of 8: (1 + 8) / 2^8 on either side.
    assert mcnemar_p(1, 7) == mcnemar_p(7, 1) == 2 * 9 / 256
    assert mcnemar_p(0, 0) == mcnemar_p(3, 3) == 1
    assert mcnemar_p(0, 6) == 2 / 64
    assert 0 < mcnemar_p(1400, 1900) < 1e-10


def test_corrected_p_values_are_those_of_holm():
    # The smallest times 4, the next times 3, and never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
