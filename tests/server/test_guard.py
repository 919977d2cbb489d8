"""Who may ask: verdicts over headers and fields, without a server."""

from email.message import Message

import pytest

from mlx_budget.server.errors import RequestError
from mlx_budget.server.guard import Access, Guard, check_content_type

CHAT = "/v1/chat/completions"


def headers_of(*pairs: tuple[str, str]) -> Message:
    headers = Message()
    for name, value in pairs:
        headers[name] = value
    return headers


def verdict(guard: Guard, *pairs, path: str = CHAT, **options) -> int:
    """The status of a refusal, or 200."""
    try:
        guard.check(headers_of(*pairs), path, **options)
    except RequestError as e:
        return e.status
    return 200


LOCAL = Guard(Access())
OPEN = Guard(Access(host="0.0.0.0", without_key=True), "0.0.0.0")


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8080",
        "localhost.:8080",
        "app.localhost",
        "127.0.0.1",
        "127.0.0.1:80",
        "127.9.9.9:1",
        "[::1]:8080",
        "[::ffff:127.0.0.1]",
    ],
)
def test_this_machine_may_be_called_by_any_of_its_names(host):
    assert verdict(LOCAL, ("Host", host)) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8080",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "xlocalhost",
        "0.0.0.0:8080",
        "192.168.1.7:8080",
        "[fe80::1]",
        "2130706433",
        "127.1",
    ],
)
def test_another_name_is_refused(host):
    """After DNS rebinding a page of evil.example reaches this machine by that name."""
    assert verdict(LOCAL, ("Host", host)) == 403


@pytest.mark.parametrize(
    "host",
    ["", "a b", "user@localhost", "localhost/x", "[::1", "localhost:x", "localhost:-1"],
)
def test_a_host_that_is_no_host_is_refused(host):
    assert verdict(LOCAL, ("Host", host)) == 400


def test_there_is_one_host():
    assert verdict(LOCAL) == 400
    assert verdict(LOCAL, ("Host", "localhost"), ("Host", "localhost")) == 400


def test_a_server_for_others_is_asked_by_numbers_and_its_own_name():
    for host in ("192.168.1.7:8080", "[fe80::1]:8080", "0.0.0.0", "localhost"):
        assert verdict(OPEN, ("Host", host)) == 200
    assert verdict(OPEN, ("Host", "evil.example")) == 403
    named = Guard(Access(host="mac.example", api_key="k"), "192.168.1.7")
    assert verdict(named, ("Host", "MAC.example.:8080"), ("x-api-key", "k")) == 200


def test_other_names_can_be_allowed():
    guard = Guard(Access(allowed_hosts=("host.docker.internal",)))
    assert verdict(guard, ("Host", "host.docker.internal:8080")) == 200
    with pytest.raises(RequestError, match="--allowed-hosts evil.example"):
        guard.check(headers_of(("Host", "evil.example")), CHAT)


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:3000", 200),
        ("https://127.0.0.1", 200),
        ("http://[::1]:5173", 200),
        ("HTTP://LOCALHOST:3000", 200),
        ("tauri://localhost", 200),
        ("https://evil.example", 403),
        ("http://localhost.evil.example", 403),
        ("http://evil.example:8080", 403),
        ("null", 403),
        ("file://", 403),
        ("", 403),
        ("localhost", 403),
        ("http://localhost@evil.example", 403),
        ("http://localhost:99999", 403),
        ("http://[", 403),
    ],
)
def test_pages_of_this_machine_may_ask_and_others_may_not(origin, status):
    assert verdict(LOCAL, ("Host", "localhost"), ("Origin", origin)) == status


def test_allowed_origins_may_ask_whatever_their_case_and_default_port():
    allowed = ("https://chat.example.com", "http://b.example:81", "null")
    guard = Guard(Access(allowed_origins=allowed))
    right = ("https://chat.example.com:443", "https://Chat.Example.com", "null")
    for origin in (*right, "http://b.example:81"):
        assert verdict(guard, ("Host", "localhost"), ("Origin", origin)) == 200
    for origin in ("http://chat.example.com", "https://chat.example.com:8", "x://y"):
        assert verdict(guard, ("Host", "localhost"), ("Origin", origin)) == 403
    two = (("Origin", "null"), ("Origin", "https://evil.example"))
    assert verdict(guard, ("Host", "localhost"), *two) == 403
    # Behind a proxy the server has the name of its page.
    assert verdict(guard, ("Host", "chat.example.com")) == 200


def test_all_origins_may_be_allowed_and_names_are_checked_all_the_same():
    guard = Guard(Access(allowed_origins=("*",)))
    origin = ("Origin", "https://evil.example")
    assert verdict(guard, ("Host", "localhost"), origin) == 200
    assert verdict(guard, ("Host", "evil.example"), origin) == 403


def test_an_allowed_origin_must_be_one():
    with pytest.raises(ValueError, match="not 'chat.example.com'"):
        Access(allowed_origins=("chat.example.com",))


def test_the_answer_is_for_allowed_pages_only():
    page = ("Origin", "http://localhost:3000")
    told = LOCAL.cross_origin_headers(headers_of(("Host", "localhost"), page))
    assert told["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert told["Vary"] == "Origin"
    for origin in ("https://evil.example", "null"):
        headers = headers_of(("Host", "localhost"), ("Origin", origin))
        assert [*LOCAL.cross_origin_headers(headers)] == ["Vary"]
    assert [*LOCAL.cross_origin_headers(headers_of(("Host", "x")))] == ["Vary"]


def test_a_preflight_is_told_what_it_asks_for():
    asked = (
        ("Host", "localhost"),
        ("Origin", "http://localhost:3000"),
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization, content-type"),
        ("Access-Control-Request-Private-Network", "true"),
    )
    guard = Guard(Access(api_key="k"))
    # Browsers send no key with it.
    assert verdict(guard, *asked, is_preflight=True) == 200
    told = guard.cross_origin_headers(headers_of(*asked))
    assert told["Access-Control-Allow-Headers"] == "authorization, content-type"
    assert "POST" in told["Access-Control-Allow-Methods"]
    assert told["Access-Control-Allow-Private-Network"] == "true"
    odd = headers_of(*asked[:3], ("Access-Control-Request-Headers", "a\x00b"))
    assert "Access-Control-Allow-Headers" not in guard.cross_origin_headers(odd)
    headers = (asked[0], ("Origin", "https://evil.example"), *asked[2:])
    assert verdict(guard, *headers, is_preflight=True) == 403


@pytest.mark.parametrize(
    ("pair", "status"),
    [
        (("Authorization", "Bearer kü"), 200),
        (("authorization", "bearer kü"), 200),
        (("x-api-key", "kü"), 200),
        (("X-Api-Key", " kü "), 200),
        (("Authorization", "Bearer k"), 401),
        (("Authorization", "Basic kü"), 401),
        (("Authorization", "kü"), 401),
        (("x-api-key", ""), 401),
        (("Cookie", "kü"), 401),
    ],
)
def test_a_key_is_asked_for(pair, status):
    guard = Guard(Access(api_key="kü"))
    assert verdict(guard, ("Host", "localhost"), pair) == status
    assert verdict(guard, ("Host", "localhost"), pair, path="/metrics") == status
    assert verdict(guard, ("Host", "localhost"), path="/health") == 200


def test_a_key_is_needed_where_others_reach_the_server():
    for address in ("0.0.0.0", "::", "192.168.1.7"):
        with pytest.raises(ValueError, match="MLX_BUDGET_API_KEY.*--no-api-key"):
            Access(host=address).check_reachable(address)
        Access(host=address, api_key="k").check_reachable(address)
        Access(host=address, without_key=True).check_reachable(address)
    for address in ("127.0.0.1", "::1"):
        Access(host="localhost").check_reachable(address)
    with pytest.raises(ValueError, match="not both"):
        Access(api_key="k", without_key=True)
    for empty in ("", " "):
        with pytest.raises(ValueError, match="empty"):
            Access(api_key=empty)


@pytest.mark.parametrize(
    ("kind", "is_right"),
    [
        ("application/json", True),
        ("Application/JSON; charset=UTF-8", True),
        ('application/json;charset="utf-8"', True),
        ("application/json; charset=utf-16", False),
        ("text/plain", False),
        ("text/plain; application/json", False),
        ("application/x-www-form-urlencoded", False),
        ("multipart/form-data; boundary=x", False),
        ("", False),
    ],
)
def test_a_body_is_json_and_says_so(kind, is_right):
    if is_right:
        check_content_type(headers_of(("Content-Type", kind)))
        return
    with pytest.raises(RequestError) as refused:
        check_content_type(headers_of(("Content-Type", kind)))
    assert refused.value.status == 415


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"chat_template": ""}, "chat_template"),
        ({"chat_template_kwargs": {"chat_template": "x"}}, "chat_template"),
        ({"chat_template_kwargs": {"max_length": 10**9}}, "max_length"),
        ({"model": "../../etc"}, "model"),
        ({"model": "/etc"}, "model"),
        ({"model": "~/models"}, "model"),
        ({"model": "a/../b"}, "model"),
        ({"model": "a/b/c"}, "model"),
        ({"model": "a\\b"}, "model"),
        ({"model": "a\x00"}, "model"),
        ({"model": ".."}, "model"),
        ({"model": "x" * 5000 + "/../y"}, "model"),
        ({"adapters": "/etc"}, "adapters"),
        ({"draft_model": "../x"}, "draft_model"),
    ],
)
def test_what_reaches_beyond_a_reply_is_refused_by_name(body, field):
    with pytest.raises(RequestError, match=field) as refused:
        LOCAL.check_fields(body, {"demo"})
    assert refused.value.status == 400
    assert len(str(refused.value)) < 300


def test_names_of_the_hub_and_of_the_served_model_pass():
    for name in ("demo", "default_model", "gpt2", "mlx-community/Qwen3-8B-4bit", "/m"):
        LOCAL.check_fields({"model": name}, {"/m"})
    LOCAL.check_fields({"chat_template_kwargs": {"enable_thinking": False}}, set())
    LOCAL.check_fields({"chat_template": None, "model": None}, set())
    LOCAL.check_fields({"model": 5, "chat_template_kwargs": [1]}, set())


def test_folders_can_be_opened(tmp_path, monkeypatch):
    (tmp_path / "models" / "one").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path / "secret")
    guard = Guard(Access(model_folders=(str(tmp_path / "models"),)))
    monkeypatch.chdir(tmp_path)
    for name in ("models/one", "./models/one", str(tmp_path / "models" / "one")):
        guard.check_fields({"model": name}, set())
    secret = ("secret", "./secret", "models/../secret", "models/link")
    for name in (*secret, str(tmp_path / "secret"), str(tmp_path / "models/link")):
        with pytest.raises(RequestError):
            guard.check_fields({"model": name}, set())
    (tmp_path / "demo").mkdir()
    guard.check_fields({"model": "demo"}, set())  # the built-in one all the same


def test_one_model_is_all_there_is_if_that_is_asked_for():
    guard = Guard(Access(only_model=True))
    guard.check_fields({"model": "demo"}, {"demo"})
    guard.check_fields({"model": "default_model", "draft_model": None}, {"demo"})
    for field in ("model", "adapters", "draft_model"):
        with pytest.raises(RequestError, match=field) as refused:
            guard.check_fields({field: "owner/name"}, {"demo"})
        assert refused.value.status == 404
