"""The pictures of a report's page, drawn as SVG.

Knows the measures of arms; nothing of records, pages or matplotlib.
"""

import html
import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

from .metrics import Measures
from .plots import by_strategy, style

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 28, 16, 52
_INK = "#000000"
# The shapes of matplotlib's markers, drawn around 0.
_SHAPES = {
    "square": "M-4.5-4.5h9v9h-9z",
    "up": "M0-6L5.6 4H-5.6z",
    "down": "M0 6L5.6-4H-5.6z",
    "diamond": "M0-6.4L5.4 0 0 6.4-5.4 0z",
    "star": "M0-7L1.7-2.3 6.7-2.2 2.7.9 4.1 5.7 0 2.8-4.1 5.7-2.7.9-6.7-2.2-1.7-2.3z",
    "cross": "M-2-5.5h4v3.5h3.5v4H2v3.5h-4V2h-3.5v-4H-2z",
    "circle": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
}
_MARKERS = {
    **{"s": "square", "p": "square", "h": "square", "^": "up", "<": "up"},
    **{"v": "down", ">": "down", "d": "diamond", "D": "diamond", "*": "star"},
    **{"P": "cross", "X": "cross"},
}


class _Axis(NamedTuple):
    """A scale from numbers to places in the picture."""

    low: float
    high: float
    step: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[float]:
        count = round((self.high - self.low) / self.step)
        return [self.low + i * self.step for i in range(count + 1)]


def legend(arms: Sequence[Measures], shown: Collection[str]) -> str:
    """A button for each strategy, to show or hide it in the pictures.

    Args:
        arms (Sequence): The arms.
        shown (Collection): The strategies that are shown at first.
    """
    buttons = ""
    for name in by_strategy(list(arms)):
        pressed = "true" if name in shown else "false"
        of = f'data-strategy="{_text(name)}"{_color(name)} aria-pressed="{pressed}"'
        kind = f'type="button" class="chip{_class(name)}"'
        mark = f'<svg viewBox="-7 -7 14 14" aria-hidden="true">{_shape(name)}</svg>'
        buttons += f"<button {kind} {of}>{mark}{_text(name)}</button>"
    return buttons


def charts(arms: Sequence[Measures], shown: Collection[str]) -> str:
    """Both pictures: of the strategies that are shown at first, and hidden ones of all.

    The first have axes of their own, on which they lie far apart.
    """
    few = [arm for arm in arms if arm["strategy"] in shown]
    if len(few) == len(arms):
        return _side_by_side("all", arms)
    return _side_by_side("few", few) + _side_by_side("all", arms, is_hidden=True)


def _side_by_side(what: str, arms: Sequence[Measures], is_hidden: bool = False) -> str:
    of = f'class="charts" data-shows="{what}"' + (" hidden" if is_hidden else "")
    return f"<div {of}>{accuracy_chart(arms)}{length_chart(arms)}</div>"


def accuracy_chart(arms: Sequence[Measures]) -> str:
    """Accuracy over the mean of all tokens, a line a strategy, with bands of 95 %."""
    if not arms:
        return ""
    tokens = [arm["total_tokens"] for arm in arms]
    low = min(arm["accuracy_low"] for arm in arms)
    x = _axis(min(tokens), max(tokens), _LEFT, _WIDTH - _RIGHT)
    y = _axis(100 * low, 100, _HEIGHT - _BOTTOM, _TOP, most=100)
    groups = []
    for name, group in by_strategy(list(arms)).items():
        group = sorted(group, key=lambda arm: arm["total_tokens"])
        points = [(x.at(a["total_tokens"]), y.at(100 * a["accuracy"])) for a in group]
        ends = [
            (x.at(a["total_tokens"]), y.at(100 * a[f"accuracy_{end}"]))
            for end, ordered in (("low", group), ("high", group[::-1]))
            for a in ordered
        ]
        drawn = ""
        if len(group) > 1:
            drawn += f'<polygon class="band" points="{_points(ends)}"/>'
            drawn += f'<polyline class="course" points="{_points(points)}"/>'
        else:
            (across, bottom), (_, top) = ends
            drawn += _line("bar", across, bottom, across, top)
        for arm, place in zip(group, points, strict=True):
            said = (
                f"{arm['arm']}: {arm['accuracy']:.1%} right "
                f"({arm['accuracy_low']:.1%} to {arm['accuracy_high']:.1%}), "
                f"{arm['total_tokens']:.0f} tokens, n = {arm['n']}"
            )
            drawn += _dot(name, place, said)
        groups.append(_group(name, drawn))
    label = "Accuracy over all tokens, with intervals of 95 %"
    frame = _frame(x, y, "tokens of a reply, all kinds", "right, %")
    return _figure(label, frame + "".join(groups))


def length_chart(arms: Sequence[Measures]) -> str:
    """Mean thinking tokens and their 10 to 90 % range over the budget."""
    arms = [arm for arm in arms if arm["mean_budget"]]
    if not arms:
        return ""
    budgets = [arm["mean_budget"] for arm in arms]
    x = _axis(min(budgets), max(budgets), _LEFT, _WIDTH - _RIGHT)
    least = min(*budgets, *(arm["thinking_p10"] for arm in arms))
    most = max(*budgets, *(arm["thinking_p90"] for arm in arms))
    y = _axis(least, most, _HEIGHT - _BOTTOM, _TOP)
    groups = []
    for name, group in by_strategy(arms).items():
        group = sorted(group, key=lambda arm: arm["mean_budget"])
        across = [x.at(arm["mean_budget"]) for arm in group]
        low, high, means = (
            [(at, y.at(arm[key])) for at, arm in zip(across, group, strict=True)]
            for key in ("thinking_p10", "thinking_p90", "thinking_tokens")
        )
        drawn = ""
        if len(group) > 1:
            drawn += f'<polygon class="band" points="{_points(low + high[::-1])}"/>'
            drawn += f'<polyline class="course" points="{_points(means)}"/>'
        else:
            drawn += _line("bar", *low[0], *high[0])
        points = means
        for arm, place in zip(group, points, strict=True):
            said = (
                f"{arm['arm']}: {arm['thinking_tokens']:.0f} tokens of thinking "
                f"({arm['thinking_p10']:.0f} to {arm['thinking_p90']:.0f}) of "
                f"{arm['mean_budget']:.0f}"
            )
            drawn += _dot(name, place, said)
        groups.append(_group(name, drawn))
    same = _identity(x, y)
    label = "Thinking against budget, with 10 to 90 % of the replies"
    frame = _frame(x, y, "budget, tokens", "tokens of thinking")
    return _figure(label, frame + same + "".join(groups))


def _identity(x: _Axis, y: _Axis) -> str:
    """The line on which all of the budget is used, with its name at its end."""
    begin, end = max(x.low, y.low), min(x.high, y.high)
    if begin >= end:
        return ""
    of = "same", x.at(begin), y.at(begin), x.at(end), y.at(end)
    return _line(*of) + _label(x.at(end) - 8, y.at(end) + 4, "used = budget", "end")


def _axis(
    low: float, high: float, start: float, end: float, most: float | None = None
) -> _Axis:
    """An axis with about five round steps that covers both numbers."""
    if high - low < abs(high) / 1000:  # of a single point
        low, high = low - max(abs(low) / 10, 1), high + max(abs(high) / 10, 1)
    span = max(high - low, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / 4))
    step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= span / 5)
    first = math.floor(low / step) * step
    last = math.ceil(high / step - 1e-9) * step
    if most is not None:
        last = min(last, most)
        first = last - math.ceil((last - low) / step - 1e-9) * step
        first = max(first, last - math.floor(most / step) * step)
    return _Axis(first, last, step, start, end)


def _frame(x: _Axis, y: _Axis, below: str, beside: str) -> str:
    drawn = ""
    for value in y.ticks():
        drawn += _line("grid", _LEFT, y.at(value), _WIDTH - _RIGHT, y.at(value))
        drawn += _label(_LEFT - 8, y.at(value) + 4, f"{value:g}", "end")
    for value in x.ticks():
        drawn += _label(x.at(value), _HEIGHT - _BOTTOM + 20, f"{value:,g}", "middle")
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    drawn += _label(middle, _HEIGHT - 10, below, "middle")
    place = f'transform="translate(15 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)"'
    of = f'class="beside" {place} text-anchor="middle"'
    return drawn + f"<text {of}>{_text(beside)}</text>"


def _figure(label: str, drawn: str) -> str:
    box = f'viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    picture = f'<svg {box} role="img" aria-label="{_text(label)}">{drawn}</svg>'
    return f"<figure><figcaption>{_text(label)}</figcaption>{picture}</figure>"


def _group(name: str, drawn: str) -> str:
    of = f'class="arms{_class(name)}" data-strategy="{_text(name)}"{_color(name)}'
    return f"<g {of}>{drawn}</g>"


def _color(name: str) -> str:
    """The colour of a strategy; that of no budget is the page's own ink."""
    color = style(name)[0]
    return "" if color == _INK else f' style="--c:{color}"'


def _class(name: str) -> str:
    return " ink" if style(name)[0] == _INK else ""


def _dot(name: str, place: tuple[float, float], said: str) -> str:
    x, y = place
    title = f"<title>{_text(said)}</title>"
    return f'<g transform="translate({x} {y})">{title}{_shape(name)}</g>'


def _shape(name: str) -> str:
    """The marker of a strategy, so that colours need not be told apart."""
    shape = _SHAPES[_MARKERS.get(style(name)[1], "circle")]
    return f'<path class="dot" fill="currentColor" d="{shape}"/>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{_text(text)}</text>'


def _points(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x},{y}" for x, y in places)


def _text(text: str) -> str:
    return html.escape(text)
