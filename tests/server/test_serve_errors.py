"""What must not take the server down, and how it starts and stops."""

import argparse
import functools
import json
import math
import operator
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx_lm.server
import pytest
from click.testing import CliRunner

from mlx_budget import demo, load
from mlx_budget.cli import cli
from mlx_budget.cli.serve import serve as command
from mlx_budget.server import run, seams
from mlx_budget.server.limits import Limits
from serve_failing import running_failing
from served import COMMAND, SECONDS, alone, serving

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import serve_soak

QUESTION = {"role": "user", "content": "What is 2 + 3 + 4 - 1?"}
CHAT = "/v1/chat/completions"
MAX_BODY = Limits().body


def send(server, body: bytes, path: str = CHAT, length: object = None) -> tuple:
    """Status and body of the answer to a request written by hand."""
    length = len(body) if length is None else length
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        "Content-Type: application/json\r\n\r\n"
    )
    with socket.create_connection((server.host, server.port), SECONDS) as connection:
        connection.sendall(head.encode("latin-1") + body)
        answer = b""
        while data := connection.recv(65536):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def post(server, path: str = CHAT, **body) -> tuple:
    status, answer = send(server, json.dumps(body).encode(), path)
    return status, json.loads(answer)


@functools.cache
def short_reply() -> dict:
    """What the server says to the question in 20 tokens, two of them of thinking."""
    return alone(load("demo"), QUESTION["content"], 2, max_tokens=20)


def assert_serving(server):
    status, answer = post(server, messages=[QUESTION], thinking_budget=2, max_tokens=20)
    assert status == 200
    (choice,) = answer["choices"]
    message = choice["message"]
    found = {name: message.get(name, "") for name in ("content", "reasoning")}
    assert {**found, "thinking": choice["thinking"]} == short_reply()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"messages": [}',
        b"\xff\xfe\x00",
        b"[1, 2]",
        b'"text"',
        b"null",
        b"[" * 100_000,
        b'{"max_tokens": ' + b"9" * 10_000 + b"}",
    ],
)
def test_a_body_that_is_not_a_json_object_is_refused(server, body):
    status, answer = send(server, body)
    assert status == 400
    assert "body" in json.loads(answer)["error"]["message"]
    assert_serving(server)


@pytest.mark.parametrize("length", ["x", "-1", "", "+2", "1_0", "²"])
def test_an_invalid_length_is_refused(server, length):
    assert send(server, b"{}", length=length)[0] == 400
    assert_serving(server)


def test_a_body_of_10_mb_is_read_and_one_past_the_limit_is_not(server):
    padding = "x" * 10_000_000
    status, _ = post(server, messages=[QUESTION], padding=padding, thinking_budget=60)
    assert status == 200
    long = {"role": "user", "content": "12 + " * 2_000_000}
    status, answer = post(server, messages=[long])
    assert status == 400
    assert "the model reads at most 2,048 tokens" in answer["error"]["message"]
    assert send(server, b"{}", length=MAX_BODY + 1)[0] == 413
    assert_serving(server)


def test_half_a_character_is_named(server):
    status, answer = post(server, messages=[{"role": "user", "content": "1 \ud83d"}])
    assert status == 400
    assert "has half of a character in it" in answer["error"]["message"]
    assert_serving(server)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("messages", None),
        ("messages", []),
        ("messages", "text"),
        ("messages", [5]),
        ("messages", [{"content": "no role"}]),
        ("messages", [{"role": "user", "content": 7}]),
        ("messages", [{"role": "user", "content": [7]}]),
        ("model", 3),
        ("stream", "yes"),
        ("stream_options", {"include_usage": 3}),
        ("stop", 5),
        ("stop", [""]),
        ("stop", [3]),
        ("tools", "hammer"),
        ("max_tokens", "many"),
        ("max_tokens", 0),
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", 2),
        ("top_k", -1),
        ("seed", "x"),
        ("logit_bias", {"a": "b"}),
        ("logit_bias", {"99999": 1}),
        ("logit_bias", [1]),
        ("chat_template_kwargs", [1]),
        ("thinking_budget", {}),
    ],
)
def test_wrong_types_are_refused_by_name(server, field, value):
    body = {"messages": [QUESTION], field: value}
    status, answer = post(server, **body)
    assert status == 400
    assert field in answer["error"]["message"]
    assert_serving(server)


def test_invalid_numbers_and_texts_do_no_harm(server):
    for number in (b"NaN", b"Infinity", b"1e999"):
        body = b'{"messages": [{"role": "user", "content": "1"}], "temperature": '
        assert send(server, body + number + b"}")[0] == 400
    lone = b'{"messages": [{"role": "user", "content": "\\ud800"}]}'
    assert send(server, lone)[0] in (200, 400)
    image = {"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}
    status, _ = post(server, messages=[{"role": "user", "content": [image]}])
    assert status == 400
    assert_serving(server)


def test_what_is_not_known_or_too_large_is_read_over(server):
    status, _ = post(
        server,
        messages=[QUESTION],
        thinking_budget=60,
        frobnicate=[1],
        user="me",
        metadata={"a": "b"},
        top_k=100_000,
        seed=-(2**62),
        xtc_probability=0,
    )
    assert status == 200
    assert_serving(server)


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": 1, "xtc_probability": 0.9, "xtc_threshold": 0.9},
        {"repetition_penalty": 1.1, "repetition_context_size": 2**40},
        {"presence_penalty": 10**400},
        {"temperature": 1, "min_p": math.nan},
        {"temperature": 10**400},
        {"temperature": 1e-40},
        {"xtc_probability": 10**400},
        {"logit_bias": {"100000": 1}},
        {"logit_bias": {"1": None}},
        {"logit_bias": {"1": "nan"}},
        {"thinking_budget": 20, "max_tokens": 10**400},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    ],
)
def test_what_would_end_the_generation_thread_is_refused(server, body):
    status, answer = post(server, **{"messages": [QUESTION], **body})
    assert status == 400
    assert answer["error"]["message"]
    assert_serving(server)
    sampled = {"messages": [QUESTION], "temperature": 1, "max_tokens": 2}
    assert post(server, **sampled)[0] == 200


def test_null_is_as_good_as_nothing(server):
    fields = (
        "max_tokens",
        "temperature",
        "top_p",
        "stream",
        "model",
        "logprobs",
        "stop",
        "seed",
        "tools",
        "stream_options",
        "thinking_budget",
        "reasoning_effort",
        "chat_template_kwargs",
    )
    body = {"messages": [QUESTION], **dict.fromkeys(fields)}
    plain = post(server, messages=[QUESTION])[1]["choices"]
    assert post(server, **body)[1]["choices"] == plain


def test_a_failure_of_generation_ends_its_requests_and_not_the_server():
    with running_failing() as server:
        assert_serving(server)
        for stream in (False, True):
            body = {"messages": [QUESTION], "seed": 13, "stream": stream}
            status, answer = send(server, json.dumps(body).encode())
            assert b"Generation failed: unlucky" in answer
            assert status == (200 if stream else 500)
            assert_serving(server)
        with ThreadPoolExecutor(4) as pool:
            bodies = [{"messages": [QUESTION], "seed": s} for s in (1, 13, 2, 13)]
            answers = list(pool.map(lambda b: post(server, **b), bodies))
        assert all(status in (200, 500, 503) for status, _ in answers)
        assert_serving(server)
        health = socket.create_connection((server.host, server.port), SECONDS)
        with health:
            health.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
            assert b"200" in health.recv(65536)


def test_a_body_past_the_limit_is_answered_though_it_is_sent(server):
    status, answer = send(server, b" " * (MAX_BODY + 1))
    assert status == 413
    assert "more than" in json.loads(answer)["error"]["message"]


def test_text_completions_need_a_text(server):
    for body in ({}, {"prompt": 5}, {"prompt": []}, {"prompt": ""}):
        status, answer = post(server, "/v1/completions", **body)
        assert status == 400
        assert "prompt" in answer["error"]["message"]
    assert post(server, "/v1/completions", prompt="1 + 1", max_tokens=4)[0] == 200


def test_an_unknown_path_is_refused(server):
    assert send(server, b"{}", "/v1/nothing")[0] == 404
    assert_serving(server)


def test_many_bad_requests_at_once(server):
    bodies = [b"{", b"[]", b'{"messages": 1}', b'{"messages": []}'] * 8
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda body: send(server, body)[0], bodies))
    assert set(found) == {400}
    assert_serving(server)


@pytest.fixture
def refused(monkeypatch):
    """What the command says that ends on bad input, in this process."""

    def run_it(*args) -> str:
        # Or the command would end the tests.
        monkeypatch.setattr(run, "has_computed", False)
        args = ["serve", *map(str, args)]
        result = CliRunner().invoke(cli, args, standalone_mode=False)
        assert (result.return_value, result.stdout) == (2, "")
        return result.stderr

    return run_it


def test_interrupting_it_ends_it_well():
    with serving() as server:
        assert_serving(server)
        assert server.stop() == 0


def test_an_address_in_use_is_one_line(refused):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refused("--model", "demo", "--port", port)
    assert told == (
        f"Error: Port {port} of 127.0.0.1 cannot be had (address already in use): give "
        "another with --port, or 0 for any that is free.\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--predictor", "./nothing"), "There is no folder ./nothing"),
        (
            ("--draft-model", demo.FOLDER, "--max-thinking-budget", 50),
            "Speculative decoding",
        ),
        (("--predictor", "none", "--thinking-budget", "auto"), "there is none"),
        (
            ("--predictor", "none", "--no-hard-stop", "--max-thinking-budget", 50),
            "nothing would hold thinking",
        ),
    ],
)
def test_what_cannot_be_served_is_one_line(refused, options, message):
    told = refused(*options, "--port", 0)
    assert message in told
    assert told.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in told


def test_a_model_that_cannot_be_loaded_ends_the_process_with_one_line():
    command = [*COMMAND, "--model", "./nothing", "--port", "0"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert (result.returncode, result.stdout) == (2, "")
    assert "There is no folder ./nothing" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "options",
    [
        ("--thinking-budget", "many"),
        ("--hard-stop", 0.5),
        ("--hard-stop", 2, "--no-hard-stop"),
        ("--max-thinking-budget", -5),
        ("--temp", -1),
        ("--chat-template-args", "[1]"),
        ("--chat-template-args", "{"),
        ("--prompt-cache-bytes", "big"),
        ("--port", 70_000),
    ],
)
def test_bad_options_are_one_line(options):
    result = CliRunner().invoke(cli, ["serve", *map(str, options)])
    assert result.exit_code == 2
    assert result.output.splitlines()[-1].startswith("Error: ")


def test_mlx_lms_server_is_where_we_extend_it():
    """Fails when a release of mlx-lm moves what we hold on to."""
    seams.check_seams()


@pytest.mark.parametrize("name", [*seams.SEAMS, *seams.CALLS])
def test_a_seam_that_has_moved_is_named(monkeypatch, name):
    owner, _, attribute = f"server.{name}".rpartition(".")
    owner = operator.attrgetter(owner)(mlx_lm)
    monkeypatch.setattr(owner, attribute, lambda self: None)
    if len(seams.SEAMS.get(name, ("self",))) > 1 or name in seams.CALLS:
        with pytest.raises(ValueError, match=f"server.{name} .*Install another"):
            seams.check_seams()
    monkeypatch.delattr(owner, attribute)
    with pytest.raises(ValueError, match=f"server.{name} is not there"):
        seams.check_seams()


def test_all_flags_of_mlx_lms_server_are_there_with_their_defaults(monkeypatch):
    class Found(Exception):
        pass

    def catch(parser):
        raise Found(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", catch)
    with pytest.raises(Found) as caught:
        mlx_lm.server.main()
    (parser,) = caught.value.args
    ours = {option.name: option for option in command.params}
    context = command.make_context("serve", [])
    ours_by_flag = {flag: o for o in ours.values() for flag in o.opts}
    # Ours reads a lone null as "depends on the budget", and lets no page ask.
    own = {"max_tokens", "allowed_origins"}
    for action in parser._actions:
        if action.dest == "help":
            continue
        for flag in action.option_strings:
            assert flag in ours_by_flag, flag
        if action.dest not in own:
            theirs = action.default
            if action.type is not None and isinstance(theirs, str):
                theirs = action.type(theirs)
            (name, *_) = {ours_by_flag[flag].name for flag in action.option_strings}
            given = context.params[name]
            assert given == theirs, action.dest


def test_the_server_can_be_imported_without_the_command_line():
    code = "import mlx_budget.server as s; assert callable(s.serve)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=SECONDS)


def test_memory_stays_flat_and_no_slot_is_taken():
    """A short form of benchmarks/serve_soak.py."""
    found = serve_soak.soak(40, clients=8, slots=4, hang_up=0.4, options=())
    assert set(found.statuses) == {200, 400}
    assert found.hang_ups > 10
    assert sum(found.statuses.values()) + found.hang_ups == 40
    # Endless replies, all at once: one would never begin behind a slot still taken.
    assert found.free_slots == 4
    assert found.growth < 60
