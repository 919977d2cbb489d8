"""Cached hidden states outlive a run that is stopped anywhere."""

import json
import os
from itertools import islice
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_budget.train import cache as cache_module
from mlx_budget.train.cache import CachedRecord, StateCache, batches

SHAPE = (4, 6)  # (N + 1, D)
ROW_BYTES = 2 * 4 * 6
SIZES = [3, 1, 2, 4]
SETTINGS = {"model": "tiny", "seed": 0}


def open_cache(folder: Path, dtype: str = "float16", **settings) -> StateCache:
    return StateCache(folder, SHAPE, dtype, {**SETTINGS, **settings})


def record(number: int) -> CachedRecord:
    n, held_out = SIZES[number], number == 1
    return CachedRecord(
        name=f"record {number}",
        is_validation=held_out,
        tokens=list(range(number, number + n)),
        lengths=list(range(n, 0, -1)),
        is_guided=[True] * n,
        is_first=[i == 0 for i in range(n)],
        mass=[0.5 if held_out else None] * n,
        prompt_tokens=9,
        prompt_digits=number,
    )


def states(number: int) -> mx.array:
    rng = np.random.default_rng(number)
    # Any float16 is itself in the cache.
    values = rng.normal(0, 1, (SIZES[number], *SHAPE)).astype(np.float16)
    return mx.array(values.astype(np.float32))


def filled(folder: Path, numbers=(0, 1, 2, 3), **options) -> StateCache:
    cache = open_cache(folder, **options)
    for number in numbers:
        cache.append(record(number), states(number))
    return cache


def assert_holds(cache: StateCache, count: int) -> None:
    """The first records, whole, with their states."""
    assert cache.records == [record(i) for i in range(count)]
    rows = np.arange(sum(SIZES[:count]))
    if count:
        want = mx.concatenate([states(i) for i in range(count)])
        assert mx.array_equal(cache.read(rows), want.astype(mx.float16))


def test_rows_are_read_as_they_were_appended_in_any_order(tmp_path):
    cache = filled(tmp_path)
    assert_holds(cache, 4)
    everything = cache.read(np.arange(10))
    assert everything.dtype == mx.float16 and everything.shape == (10, *SHAPE)
    rows = np.array([9, 0, 4, 4])
    assert mx.array_equal(cache.read(rows), everything[mx.array(rows)])


def test_moments_are_those_of_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "_ROWS_AT_A_TIME", 3)
    cache = filled(tmp_path)
    want = np.array(mx.concatenate([states(i) for i in range(4)]), np.float64)
    rows = np.array([0, 1, 3, 5, 6, 8, 9])
    mean, deviation = cache.moments(rows)
    np.testing.assert_allclose(mean, want[rows].mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(deviation, want[rows].std(axis=0), atol=1e-7)
    monkeypatch.setattr(cache_module, "_MOST_ROWS", 4)
    mean, _ = cache.moments(rows)
    np.testing.assert_allclose(mean, want[[0, 3, 6, 9]].mean(axis=0), atol=1e-12)


def test_a_cache_that_is_opened_again_holds_what_it_held(tmp_path):
    filled(tmp_path, range(2))
    cache = open_cache(tmp_path)
    assert_holds(cache, 2)
    # Rows that come after others were read can be read too.
    cache.append(record(2), states(2))
    cache.append(record(3), states(3))
    assert_holds(cache, 4)
    assert_holds(open_cache(tmp_path), 4)


@pytest.mark.parametrize("file", ["states.bin", "records.jsonl"])
def test_a_file_cut_anywhere_loses_whole_records_at_its_end(tmp_path, file):
    filled(tmp_path / "whole")
    files = ["states.bin", "records.jsonl", "settings.json"]
    whole = {name: (tmp_path / "whole" / name).read_bytes() for name in files}
    lines = whole["records.jsonl"].splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    if file == "states.bin":
        ends = np.cumsum(SIZES) * ROW_BYTES
    folder = tmp_path / "cut"
    folder.mkdir()
    lost = set()
    near_ends = {int(end) + i for end in ends for i in (-1, 0, 1)}
    for size in sorted({*range(0, ends[-1], 7), *near_ends} - {ends[-1] + 1}):
        for name, content in whole.items():
            (folder / name).write_bytes(content)
        os.truncate(folder / file, size)
        cache = open_cache(folder)
        count = int((ends <= size).sum())
        assert_holds(cache, count)
        lost.add(count)
        # It goes on to the very same bytes.
        for number in range(count, 4):
            cache.append(record(number), states(number))
        for name, content in whole.items():
            assert (folder / name).read_bytes() == content
    assert lost == {0, 1, 2, 3, 4}


def test_states_without_their_line_are_cut_off(tmp_path):
    filled(tmp_path, range(2))
    with (tmp_path / "states.bin").open("ab") as f:
        f.write(bytes(5 * ROW_BYTES + 7))
    cache = open_cache(tmp_path)
    assert_holds(cache, 2)
    cache.append(record(2), states(2))
    assert_holds(open_cache(tmp_path), 3)


def test_bfloat16_states_are_kept_as_they_are(tmp_path):
    wide = (mx.random.normal((3, *SHAPE)) * 1e6).astype(mx.bfloat16)
    cache = open_cache(tmp_path, dtype="bfloat16")
    cache.append(record(0), wide)
    cache = open_cache(tmp_path, dtype="bfloat16")
    found = cache.read(np.array([2, 0]))
    assert found.dtype == mx.bfloat16
    assert mx.array_equal(found, wide[mx.array([2, 0])])


@pytest.mark.parametrize("bad", [mx.nan, mx.inf, 1e5])
def test_states_that_do_not_fit_name_the_record_and_leave_nothing(tmp_path, bad):
    cache = filled(tmp_path, range(2))
    wrong = states(2)
    wrong[1, 2, 3] = bad
    with pytest.raises(ValueError) as e:
        cache.append(record(2), wrong)
    assert str(e.value) == (
        "record 2: a hidden state does not fit into the cache's type: try "
        "--cache-dtype bfloat16."
    )
    assert_holds(cache, 2)
    assert_holds(open_cache(tmp_path), 2)


@pytest.mark.parametrize("bad", [mx.nan, mx.inf])
def test_bfloat16_holds_large_states_but_no_others(tmp_path, bad):
    cache = open_cache(tmp_path, dtype="bfloat16")
    cache.append(record(0), states(0) * 1e30)
    with pytest.raises(ValueError, match="record 1: a hidden state does not fit"):
        cache.append(record(1), states(1) * bad)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("seed", {"seed": 1}),
        ("model", {"model": "other"}),
        ("dtype", {"dtype": "bfloat16"}),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, name, changes):
    filled(tmp_path)
    with pytest.raises(ValueError) as e:
        open_cache(tmp_path, **changes)
    assert str(e.value) == (
        f"{tmp_path} holds hidden states of other settings ({name}): name another "
        "--cache-dir, or remove it."
    )
    assert_holds(open_cache(tmp_path), 4)


def test_states_of_another_shape_are_refused(tmp_path):
    filled(tmp_path)
    with pytest.raises(ValueError, match=r"of other settings \(shape\)"):
        StateCache(tmp_path, (5, 6), "float16", SETTINGS)


def test_positions_are_the_records_one_after_another(tmp_path):
    p = filled(tmp_path).positions()
    assert p.record.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 3, 3]
    assert p.is_validation.tolist() == [False] * 3 + [True] + [False] * 6
    assert p.tokens.tolist() == [0, 1, 2, 1, 2, 3, 3, 4, 5, 6]
    assert p.lengths.tolist() == [3, 2, 1, 1, 2, 1, 4, 3, 2, 1]
    assert np.flatnonzero(p.is_first).tolist() == [0, 3, 4, 6]
    assert np.isnan(p.mass).tolist() == [True] * 3 + [False] + [True] * 6
    assert p.mass[3] == 0.5
    # They are what the file says, and not what was given to this cache.
    again = open_cache(tmp_path).positions()
    for name, value in vars(p).items():
        np.testing.assert_array_equal(value, getattr(again, name), name)


def test_lines_are_json_for_others_to_read(tmp_path):
    filled(tmp_path)
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [
        f"record {i}" for i in range(4)
    ]


# Batches

ROWS = np.array([2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31])


@pytest.mark.parametrize("size", [1, 4, 11, 20])
def test_every_row_comes_once_an_epoch(size):
    each = -(-len(ROWS) // size)
    drawn = list(islice(batches(ROWS, size, 0), 3 * each))
    epochs = [np.concatenate(drawn[i : i + each]) for i in range(0, 3 * each, each)]
    for epoch in epochs:
        assert sorted(epoch) == ROWS.tolist()
    # Two orders of 11 are equal with odds of 1 in 4e7.
    assert len({tuple(e) for e in epochs}) == 3
    assert all(len(batch) == min(size, len(ROWS)) for batch in drawn[: each - 1])


@pytest.mark.parametrize("size", [1, 4, 11, 20])
def test_a_run_that_goes_on_has_the_batches_it_would_have_had(size):
    whole = list(islice(batches(ROWS, size, 3), 30))
    for first in range(25):
        again = list(islice(batches(ROWS, size, 3, first), 5))
        for ours, theirs in zip(again, whole[first:], strict=False):
            assert ours.tolist() == theirs.tolist()


def test_the_order_is_the_seeds():
    one, same, other = (next(batches(ROWS, 11, seed)).tolist() for seed in (0, 0, 1))
    assert one == same != other
