"""An evaluation as one HTML page that needs nothing from outside.

Knows records, their summary and how a page shows them; nothing of models or tasks. All
texts are shown as texts: a reply is never taken for HTML.
"""

import base64
import gzip
import hashlib
import html
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ..engine import m1
from ..files.records import Record
from ..files.texts import write_text
from .charts import charts, legend
from .grading import answer_of
from .plots import main_strategies
from .tables import notes, rows

REPORT_FILE = "report.html"

# What a list shows of a question or an answer; all of it is there when it is opened.
_MOST_SHOWN, _MOST_ANSWERS = 600, 80
_MARKERS = ("</think>", m1.END, "[/THINK]", "</seed:think>", "<|end|>")
_FACTS = ("model", "task", "problems", "num_samples", "temp", "seed", "max_tokens")
_COUNTS = {
    "thinking_tokens": "thinking",
    "answer_tokens": "answer",
    "after_close_tokens": "behind the close",
    "forced_tokens": "put in",
    "probe_tokens": "probes",
}


def write_page(
    folder: Path,
    records: Sequence[Record],
    summary: dict[str, Any],
    strategies: Sequence[str] | None = None,
) -> Path:
    """Writes `REPORT_FILE` into a folder, whole or not at all.

    Args:
        folder (Path): Where to put it.
        records (Sequence): The finished replies.
        summary (dict): What `summarize` makes of them.
        strategies (Sequence, optional): Those that the pictures show at first; the
            others are shown when their buttons are pressed. `main_strategies` by
            default.

    Returns:
        Path: The file.
    """
    file = Path(folder) / REPORT_FILE
    write_text(file, page(records, summary, strategies))
    return file


def page(
    records: Sequence[Record],
    summary: dict[str, Any],
    strategies: Sequence[str] | None = None,
) -> str:
    """The page as a text, see `write_page`."""
    names = main_strategies(summary["arms"]) if strategies is None else strategies
    settings = summary["settings"]
    script = _part("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    task, model = (settings.get(name, "?") for name in ("task", "model"))
    facts = (
        f"<span>{name.replace('_', ' ')}: {html.escape(str(settings[name]))}</span>"
        for name in _FACTS
        if settings.get(name) is not None
    )
    parts = {
        "POLICY": f"sha256-{digest}",
        "TITLE": html.escape(f"{model} on {task}: accuracy against thinking budget"),
        "FACTS": "".join(facts),
        "LEGEND": legend(summary["arms"], names),
        "CHARTS": charts(summary["arms"], names),
        "TABLES": "".join(_tables(summary)),
        "DATA": _data(records, summary),
        "SCRIPT": script,
    }
    # In one go, so that what is put in is never taken for a place to put things.
    return re.sub(r"\[\[([A-Z]+)\]\]", lambda m: parts[m[1]], _part("report.html"))


def _part(name: str) -> str:
    file = resources.files("mlx_budget.evaluate") / name
    return file.read_text(encoding="utf-8")


def _tables(summary: dict[str, Any]) -> Iterator[str]:
    for headers, are_texts, cells in rows(summary):
        kinds = [' class="text"' if is_text else "" for is_text in are_texts]
        head = "".join(
            f"<th{kind}>{html.escape(name)}</th>"
            for name, kind in zip(headers, kinds, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{kind}>{html.escape(cell)}</td>"
                for cell, kind in zip(row, kinds, strict=True)
            )
            + "</tr>"
            for row in cells
        )
        table = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        yield f'<div class="scroll" tabindex="0"><table>{table}</table></div>'
    yield from (f"<p>{html.escape(note)}</p>" for note in notes(summary))


def _data(records: Sequence[Record], summary: dict[str, Any]) -> str:
    """What the script shows, as JSON that cannot end the element it stands in."""
    names = {arm["arm"]: i for i, arm in enumerate(summary["arms"])}
    groups: dict[str, list[tuple[int, Record]]] = {}
    for record in records:
        budget = record["budget"]
        strategy = record["strategy"]
        name = strategy if budget is None else f"{strategy}@{budget}"
        groups.setdefault(record["problem"], []).append((names[name], record))
    marker = summary["settings"].get("thinking_end")
    data = {
        "arms": [{"name": name} for name in names],
        "questions": [
            _question(problem, sorted(group, key=_place), len(names), marker)
            for problem, group in sorted(groups.items(), key=lambda g: _natural(g[0]))
        ],
    }
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("&", "\\u0026").replace(">", "\\u003e")


def _place(item: tuple[int, Record]) -> tuple[int, int]:
    return item[0], item[1]["sample"]


def _natural(name: str) -> list[tuple[int, str]]:
    """Orders names as people do: 2 before 10."""
    pieces = re.findall(r"\d+|\D+", name)
    return [(int(p), "") if p.isdecimal() else (-1, p) for p in pieces]


def _question(
    problem: str, group: list[tuple[int, Record]], arms: int, marker: str | None
) -> dict[str, Any]:
    first = group[0][1]
    marks: list[list[int] | None] = [None] * arms
    for arm, record in group:
        right, n = marks[arm] or (0, 0)
        marks[arm] = [right + bool(record["correct"]), n + 1]
    question, reference = (str(first.get(n) or "") for n in ("question", "reference"))
    extracted = (str(record.get("extracted") or "") for _, record in group)
    whole = {
        "question": question,
        "replies": [_reply(arm, record, marker) for arm, record in group],
    }
    return {
        "id": problem,
        "text": _short(question, _MOST_SHOWN),
        "reference": _short(reference, _MOST_ANSWERS),
        "answers": "\n".join({_short(e, _MOST_ANSWERS): None for e in extracted if e}),
        "marks": marks,
        "problems": sum(bool(r.get("grading_problem")) for _, r in group),
        "packed": _packed(whole),
    }


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _packed(value: dict[str, Any]) -> str:
    """JSON, compressed: the same bytes whenever the value is the same."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def _reply(arm: int, record: Record, marker: str | None) -> dict[str, Any]:
    thinking, answer = _halves(record, marker)
    counts = (
        f"{record[name]:,} {what}" for name, what in _COUNTS.items() if record.get(name)
    )
    budget = record.get("thinking_budget")
    of = "" if budget is None else f" (budget {budget:,})"
    return {
        "arm": arm,
        "sample": record["sample"],
        "thinking": thinking,
        "answer": answer,
        "counts": (", ".join(counts) or "no tokens") + of,
        "closed": record.get("closed_by"),
        "correct": bool(record["correct"]),
        "extracted": record.get("extracted"),
        "rule": record.get("grading_rule"),
        "problem": record.get("grading_problem"),
    }


def _halves(record: Record, marker: str | None) -> tuple[str, str]:
    """A reply's thinking and its answer, without the marker between them."""
    text = record.get("reply") or ""
    is_open = record.get("closed_by") is None and record["thinking_tokens"] > 0
    if is_open:
        return text, ""
    for end in [marker] if marker else _MARKERS:
        if end in text:
            answer = answer_of(text, end, False) or ""
            thinking = text[: len(text) - len(answer)].removesuffix(end)
            return thinking.strip(), answer.strip()
    return "", text.strip()
