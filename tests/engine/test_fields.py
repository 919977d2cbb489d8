"""Fields of settings: options are made from them, values from keyword arguments."""

from dataclasses import MISSING, dataclass, fields

import pytest

from mlx_budget.engine.fields import (
    all_options_of,
    check_numbers,
    keywords_of,
    like,
    options_of,
    setting,
    take,
    take_all,
)


@dataclass(frozen=True)
class Inner:
    size: int = setting(3, "How large.", least=1, most=9)
    name: str | None = setting(None, "Its name.", keyword="inner_name")

    def __post_init__(self) -> None:
        check_numbers(self)


@dataclass(frozen=True)
class Outer:
    count: int = setting(1, "How many.", flags=("--count", "-c"))
    inner: Inner = Inner(size=5)
    size_too: int = like(Inner, "size", 4, keyword="size_too", most=5)
    left_alone: int = 0


def test_names_that_are_not_given_follow_from_the_field():
    found = {f.name: (o.keyword, o.flags) for f, o in options_of(Inner)}
    assert found == {
        "size": ("size", ("--size",)),
        "name": ("inner_name", ("--inner-name",)),
    }


def test_options_of_inner_values_come_in_their_place_with_their_defaults():
    found = [(default, o.keyword) for default, _, o in all_options_of(Outer)]
    names = ["count", "size", "inner_name", "size_too"]
    assert found == list(zip((1, 5, None, 4), names, strict=True))
    value = Outer(count=2, inner=Inner(size=7, name="x"))
    found = [default for default, _, _ in all_options_of(value)]
    assert found == [2, 7, "x", 4]


def test_a_field_like_another_differs_in_what_is_said_alone():
    (option,) = (o for f, o in options_of(Outer) if f.name == "size_too")
    assert (option.help, option.least, option.most) == ("How large.", 1, 5)
    (field,) = (f for f in fields(Outer) if f.name == "size_too")
    assert field.default == 4
    assert like(Inner, "size").default == 3
    assert like(Inner, "size", MISSING).default is MISSING


def test_values_are_made_of_their_keywords_and_leave_the_others():
    keywords = {"size": 2, "inner_name": "x", "count": 4, "other": 1}
    assert take(Outer, keywords) == Outer(4, Inner(2, "x"))
    assert keywords == {"other": 1}
    base = Outer(count=7, inner=Inner(size=8))
    assert take(Outer, {"inner_name": "y"}, base) == Outer(7, Inner(8, "y"))
    with pytest.raises(TypeError, match="There is no option 'other'"):
        take_all(Outer, {"count": 1, "other": 1})


def test_keywords_make_an_equal_value():
    value = Outer(3, Inner(9, "z"), 5)
    assert take_all(Outer, keywords_of(value)) == value


@pytest.mark.parametrize("size", [0, 10, 2.0, True, "3", None, float("nan")])
def test_numbers_beyond_their_limits_are_refused_by_name(size):
    with pytest.raises(ValueError, match="size must be .*not "):
        take(Inner, {"size": size})
