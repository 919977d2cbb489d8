"""The status page, in a real headless browser, and the policy that it comes with."""

import re
import sys
from pathlib import Path

import pytest

from asking import SECONDS, exchange, get, post, request_of
from mlx_budget.server import running

sys.path.append(str(Path(__file__).parents[2] / "docs"))
from make_status_page import browsing, find_browser

WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 360, "height": 700}


@pytest.fixture(scope="module")
def url():
    with running() as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    """Opens pages; each says at its end what went wrong in it."""
    pytest.importorskip("playwright")
    if find_browser() is None:
        pytest.skip("There is no Chromium on this machine.")
    with browsing() as page:
        yield page.context.browser


@pytest.fixture
def open_page(browser):
    pages = []

    def open_(url: str, *expected: str, **options):
        page = browser.new_context(viewport=WIDE, **options).new_page()
        page.set_default_timeout(1000 * SECONDS)
        page.troubles, page.asked = [], []
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("request", lambda request: page.asked.append(request.url))
        page.on(
            "console",
            lambda line: line.type == "error" and page.troubles.append(line.text),
        )
        pages.append((page, url, expected))
        page.goto(url)
        return page

    yield open_
    for page, url, expected in pages:
        assert all(asked.startswith(f"{url}/") for asked in page.asked)
        rest = [t for t in page.troubles if not any(e in t for e in expected)]
        assert rest == []
        page.context.close()


def ask(page, question: str, budget: str) -> None:
    slider = page.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(20):
        if page.locator("#shown").text_content() == budget:
            break
        page.keyboard.press("ArrowRight")
    page.get_by_label("Your question").fill(question)
    page.keyboard.press("Enter")


def test_a_budget_can_be_tried(url, open_page):
    page = open_page(url)
    page.get_by_text("ok", exact=True).wait_for()
    ask(page, "What is 7 + 1 + 5 - 9 + 8?", "64 tokens")
    page.get_by_text("Thinking: 41 of 64 tokens, closed by the model.").wait_for()
    page.get_by_text("The answer is 12.").wait_for()
    row = page.locator("tbody tr").first
    row.get_by_text("41 of 64").wait_for()
    assert row.locator("td").all_inner_texts()[1:3] == ["chat", "200"]
    ask(page, "And 2 + 3?", "0: answer at once")
    page.get_by_text("Thinking: 0 of 0 tokens, closed by the budget.").wait_for()
    # The second one went on with the first.
    told = get(url, "/status").json()["requests"]
    assert told[0]["prompt_tokens"] > told[1]["prompt_tokens"]
    page.get_by_role("button", name="Clear").click()
    assert page.locator("#talk").text_content() == ""


def test_a_reply_can_be_stopped(url, open_page):
    page = open_page(url)
    held = []
    page.route("**/v1/chat/completions", lambda route: held.append(route))
    with page.expect_request("**/v1/chat/completions"):
        ask(page, "What is 1 + 1?", "64 tokens")
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert len(held) == 1
    page.unroute("**/v1/chat/completions")
    ask(page, "What is 7 + 1 + 5 - 9 + 8?", "64 tokens")
    # The question that was stopped is not asked again.
    page.get_by_text("The answer is 12.").wait_for()


def test_what_is_said_is_text_and_no_html(url, open_page):
    page = open_page(url)
    ask(page, "<img src=x onerror=alert(1)><b>1 + 1</b>", "16 tokens")
    page.get_by_text("closed by the").wait_for()
    assert page.locator("#talk img, #talk b").count() == 0
    assert "<img src=x" in page.locator(".asked").text_content()


def test_an_error_is_told(url, open_page):
    page = open_page(url, "status of 400")
    ask(page, "1 " * 2100, "64 tokens")
    page.get_by_text("The prompt is too long").first.wait_for()
    page.locator("tbody td.reason").first.wait_for()


def test_a_key_unlocks_it(open_page):
    with running(api_key="secret") as url:
        page = open_page(url, "status of 401")
        page.get_by_text("locked").wait_for()
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Use it").click()
        page.get_by_label("API key").fill("secret")
        page.get_by_role("button", name="Use it").click()
        page.get_by_text("ok", exact=True).wait_for()
        ask(page, "What is 7 + 1 + 5 - 9 + 8?", "64 tokens")
        page.get_by_text("The answer is 12.").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_narrow_screen_in_both_schemes(url, open_page, scheme):
    post(url)
    page = open_page(url, color_scheme=scheme)
    page.set_viewport_size(NARROW)
    page.locator("tbody tr").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", ground)[:3])) / 3
    assert (brightness > 200) == (scheme == "light")


def test_nothing_else_runs_in_it(url, open_page):
    page = open_page(url, "Content Security Policy", "Refused", "violates")
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.bad = 1';"
        "document.body.append(s);"
        "document.body.insertAdjacentHTML('beforeend', '<a onclick=\"window.bad=1\">');"
        "document.querySelector('a').click();"
    )
    assert page.evaluate("window.bad") is None


def test_it_comes_with_a_policy_and_only_to_be_looked_at(url):
    answer = get(url, "/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-frame-options"] == "DENY"
    assert not re.search(rb"(src|href)=|https?://|@import", answer.body)
    evil = {"Host": "evil.example"}
    assert exchange(url, request_of("GET", "/", **evil)).status == 403
    foreign = get(url, "/status", Origin="https://evil.example")
    assert foreign.status == 403
