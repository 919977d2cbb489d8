"""The page of a report: whole in itself, and replies stay texts."""

import base64
import gzip
import hashlib
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evaluation_records import record
from mlx_budget.evaluate.page import REPORT_FILE, page, write_page
from mlx_budget.evaluate.summary import summarize

sys.path.append(str(Path(__file__).parents[2] / "docs"))
from make_status_page import browsing, find_browser

EVIL = '</script><img src=x onerror="document.title=1"><b>[[DATA]]&lt;'
SETTINGS = {"model": f"m{EVIL}", "task": "sums", "temp": 0.6}
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 700}


def made(**fields):
    defaults = {
        "question": "What is 7 + 1?",
        "reference": "8",
        "reply": f"7 and 1 {EVIL}\n</think>\n\nIt is 8 {EVIL}",
        "extracted": f"8 {EVIL}",
        "grading_rule": "number",
    }
    return {**defaults, **fields}


@pytest.fixture(scope="module")
def records():
    found = []
    for strategy, budgets in (("full", [None]), ("guidance", [20, 40])):
        for budget in budgets:
            for problem in ("2", "10", "1"):
                one = record(strategy, budget, int(problem), 15)
                one["correct"] = strategy == "full" or problem == "2"
                found.append({**one, **made(problem=problem)})
    return found


@pytest.fixture(scope="module")
def text(records):
    return page(records, summarize(records, SETTINGS))


class Elements(HTMLParser):
    """The elements of a page by their names."""

    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.found if name == tag]


def data_of(text: str) -> dict:
    (found,) = re.findall(r'<script id="data"[^>]*>(.*?)</script>', text, re.DOTALL)
    return json.loads(found)


def unpacked(question: dict) -> dict:
    return json.loads(gzip.decompress(base64.b64decode(question["packed"])))


def test_the_page_needs_nothing_from_outside(text):
    elements = Elements(text)
    assert not elements.all("link") and not elements.all("img")
    for _, attributes in elements.found:
        assert not {"src", "href", "srcset"} & set(attributes)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style and "@import" not in style
    assert "prefers-color-scheme: dark" in style
    (policy,) = [m["content"] for m in elements.all("meta") if "http-equiv" in m]
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest())
    assert policy.startswith("default-src 'none'")
    assert f"script-src 'sha256-{digest.decode()}'" in policy


def test_a_text_of_a_reply_makes_no_element(text):
    elements = Elements(text)
    assert len(elements.all("script")) == text.count("</script>") == 2
    assert not elements.all("b")
    assert "&lt;/script&gt;" in text.partition("</h1>")[0]
    # What is put in is not searched for places to put things in.
    assert unpacked(data_of(text)["questions"][0])["replies"][0]["answer"].endswith(
        EVIL
    )


def test_every_reply_is_there_with_its_thinking_apart(text, records):
    data = data_of(text)
    assert [arm["name"] for arm in data["arms"]] == [
        "full",
        "guidance@20",
        "guidance@40",
    ]
    # In the order of numbers, not of letters.
    assert [q["id"] for q in data["questions"]] == ["1", "2", "10"]
    assert [q["marks"] for q in data["questions"]] == [
        [[1, 1], [0, 1], [0, 1]],
        [[1, 1], [1, 1], [1, 1]],
        [[1, 1], [0, 1], [0, 1]],
    ]
    whole = unpacked(data["questions"][0])
    assert whole["question"] == "What is 7 + 1?"
    assert [reply["arm"] for reply in whole["replies"]] == [0, 1, 2]
    first = whole["replies"][0]
    assert first["thinking"] == f"7 and 1 {EVIL}"
    assert first["answer"] == f"It is 8 {EVIL}"
    assert (first["rule"], first["correct"]) == ("number", True)


def test_a_reply_that_is_still_thinking_has_no_answer(records):
    one = {**records[0], "closed_by": None, "reply": "I wonder", "thinking_tokens": 3}
    data = data_of(page([one], summarize([one], {})))
    reply = unpacked(data["questions"][0])["replies"][0]
    assert (reply["thinking"], reply["answer"]) == ("I wonder", "")


def test_the_pictures_have_every_arm_and_its_band(text):
    accuracy, length = re.findall(r"<svg viewBox=\"0 0 640.*?</svg>", text, re.DOTALL)
    assert "guidance@20: 33.3% right" in accuracy
    assert accuracy.count('class="band"') == 1
    assert "full: 100.0% right" in accuracy
    assert "guidance@40: 15 tokens of thinking (15 to 15) of 40" in length
    assert "full" not in length


def test_markers_lie_on_their_budgets_within_the_picture():
    rows = [
        record(strategy, budget, i, 2 * budget)
        for strategy in ("guidance", "hard-stop", "truncate")
        for budget in (20, 60)
        for i in range(2)
    ]
    _, length = re.findall(
        r"<svg viewBox=\"0 0 640.*?</svg>", page(rows, summarize(rows, {})), re.DOTALL
    )
    places = [float(x) for x in re.findall(r'translate\(([\d.]+) [\d.]+\)"><t', length)]
    assert len(places) == 6 and len(set(places)) == 2
    assert 58 <= min(places) and max(places) <= 640 - 28
    assert "used = budget" in length


def test_one_point_alone_is_a_picture():
    rows = [record("guidance", 20, 0, 15)]
    pictures = re.findall(
        r"<svg viewBox=\"0 0 640.*?</svg>", page(rows, summarize(rows, {})), re.DOTALL
    )
    for picture in pictures:
        ticks = re.findall(r'text-anchor="middle">([\d.,]+)<', picture)
        assert 2 <= len(set(ticks)) == len(ticks) and all(len(x) < 7 for x in ticks)


def test_of_many_strategies_three_are_shown_at_first():
    names = ["full", "guidance", "hard-stop", "s1"]
    rows = [record(n, None if n == "full" else 20, 0, 15) for n in names]
    summary = summarize(rows, {})
    text = page(rows, summary)
    chips = Elements(text.partition("<main>")[2]).all("button")
    pressed = {
        c["data-strategy"]: c["aria-pressed"] for c in chips if "data-strategy" in c
    }
    assert pressed == {**dict.fromkeys(names, "true"), "s1": "false"}
    few, every = re.findall(r'<div class="charts" data-shows="(\w+)"( hidden)?>', text)
    assert (few, every) == (("few", ""), ("all", " hidden"))
    # All of them from the start, where all are asked for.
    text = page(rows, summary, names)
    assert 'aria-pressed="false">' not in text and 'data-shows="few"' not in text


def test_the_tables_are_those_of_the_report(text):
    assert text.count("<table>") == 3
    assert "<td>33.3 % (6.1-79.2)</td>" in text
    assert '<th class="text">against</th>' in text


def test_the_same_records_make_the_same_page(records, tmp_path):
    summary = summarize(records, SETTINGS)
    file = write_page(tmp_path, records, summary)
    assert file == tmp_path / REPORT_FILE
    assert file.read_text(encoding="utf-8") == page(records[::-1], summary)


def test_long_questions_are_whole_only_where_they_are_opened(records):
    long = "word " * 1000
    one = {**records[0], "question": long}
    question = data_of(page([one], summarize([one], {})))["questions"][0]
    assert len(question["text"]) == 600
    assert unpacked(question)["question"] == long


@pytest.fixture(scope="module")
def open_page(text, tmp_path_factory):
    pytest.importorskip("playwright")
    if find_browser() is None:
        pytest.skip("There is no Chromium on this machine.")
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(text, encoding="utf-8")
    with browsing() as first:
        browser = first.context.browser

        def open_(**options):
            shown = browser.new_context(**options).new_page()
            shown.set_default_timeout(60_000)
            shown.troubles = []
            shown.on("pageerror", lambda error: shown.troubles.append(str(error)))
            shown.on("console", lambda line: shown.troubles.append(line.text))
            shown.goto(file.as_uri())
            shown.locator(".question").first.wait_for()
            return shown

        yield open_


def test_in_a_browser_replies_are_unfolded_found_and_filtered(open_page):
    shown = open_page(viewport=WIDE)
    assert shown.locator(".question").count() == 3
    assert shown.locator(".reply").count() == 0
    shown.locator(".question summary").first.click()
    shown.locator(".reply").first.wait_for()
    assert shown.locator(".reply").count() == 3
    assert EVIL in shown.locator(".reply > pre").first.text_content()
    assert not shown.locator(".reply .thought").first.is_visible()
    shown.locator(".reply summary").first.click()
    assert shown.locator(".reply .thought").first.is_visible()
    assert shown.title() != "1" and shown.locator("img").count() == 0

    shown.get_by_label("wrong in").select_option("guidance@20")
    assert shown.locator("#found").text_content() == "2 of 3 questions"
    shown.get_by_label("wrong in").select_option("-")
    shown.get_by_label("in replies too").check()
    shown.get_by_role("searchbox").fill("7 AND 1")
    shown.locator("#found", has_text="3 of 3 questions").wait_for()
    shown.get_by_role("searchbox").fill("nowhere")
    shown.locator("#found", has_text="0 of 3 questions").wait_for()
    assert shown.troubles == []


def test_in_a_browser_another_strategy_brings_the_axes_of_all(open_page, tmp_path):
    names = ["full", "guidance", "hard-stop", "s1"]
    rows = [record(n, None if n == "full" else 20, 0, 15) for n in names]
    file = write_page(tmp_path, [{**r, **made()} for r in rows], summarize(rows, {}))
    shown = open_page(viewport=WIDE)
    shown.goto(file.as_uri())
    few, every = (shown.locator(f"[data-shows={x}]") for x in ("few", "all"))
    button = shown.locator(".legend [data-strategy=s1]")
    assert few.is_visible() and not every.is_visible()
    button.click()
    assert every.is_visible() and not few.is_visible()
    assert every.locator(".arms[data-strategy=s1]").first.is_visible()
    button.click()
    assert few.is_visible() and not every.is_visible()
    assert shown.troubles == []


def test_in_a_browser_it_fits_a_narrow_screen_and_a_dark_one(open_page):
    narrow = open_page(viewport=NARROW, color_scheme="dark")
    wider = "document.documentElement.scrollWidth > innerWidth"
    assert not narrow.evaluate(wider)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert narrow.evaluate(paper) == "rgb(20, 23, 27)"
    wide = open_page(viewport=WIDE, color_scheme="light")
    assert wide.evaluate(paper) == "rgb(255, 255, 255)"
    button = wide.locator(".legend [data-strategy=guidance]")
    group = wide.locator("svg .arms[data-strategy=guidance]").first
    assert group.is_visible()
    button.click()
    assert not group.is_visible()
    assert narrow.troubles == wide.troubles == []
