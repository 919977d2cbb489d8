"""How a server starts and ends: its port, its model's loading, its last replies."""

import json
import resource
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import openai
import pytest
from click.testing import CliRunner

from asking import CHAT, HONEST, MESSAGES, connect, get, post, read_until, request_of
from mlx_budget.cli import cli
from mlx_budget.server import generation, limits, run, running
from mlx_budget.server.options import NOT_SERVED, take_options
from served import SECONDS, ask, serving

ENDLESS = {
    "messages": MESSAGES,
    "stream": True,
    "max_tokens": 1_000_000,
    "logit_bias": {str(token): 100 for token in range(20, 30)},
}
SLOW = (sys.executable, str(Path(__file__).parent / "serve_slowly.py"))


def test_a_reply_ends_where_the_models_context_does(monkeypatch):
    monkeypatch.setattr(generation, "context_length", lambda *_: 60)
    with running() as url:
        for asked in (1_000_000, None):
            body = {**ENDLESS, "stream": False, "max_tokens": asked}
            answer = post(url, body).json()
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["total_tokens"] == 60
        prompt = answer["usage"]["prompt_tokens"]
        assert post(url, {**body, "max_tokens": 5}).json()["usage"]["total_tokens"] < 60
        # Thinking leaves room for an answer in what there is room for.
        answer = post(url, {"messages": MESSAGES, "thinking_budget": 500}).json()
        assert answer["choices"][0]["thinking"]["budget"] < 60 - prompt
        monkeypatch.setattr(generation, "context_length", lambda *_: prompt)
        answer = post(url, HONEST)
        assert answer.status == 400
        assert f"has {prompt} tokens, all that the model reads" in answer.message


# What is asked for in each interface, and what is there when a reply has begun.
STREAMS = {
    CHAT: (ENDLESS, b"data: "),
    "/v1/messages": ({"messages": MESSAGES, "max_tokens": 999}, b"delta"),
    "/v1/responses": ({"input": "What is 1 + 1?"}, b"delta"),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_streams_are_ended_with_an_error_event_in_their_own_form(number):
    with serving("--grace", 0, command=SLOW) as server, ExitStack() as stack:
        connections, came = {}, {}
        for path, (body, begun) in STREAMS.items():
            connections[path] = stack.enter_context(connect(server.url))
            data = json.dumps({**body, "stream": True}).encode()
            connections[path].sendall(request_of("POST", path, data))
            came[path] = read_until(connections[path], begun)
        server.process.send_signal(number)
        for path, connection in connections.items():
            while data := connection.recv(1 << 16):
                came[path] += data
        *_, error, done, rest = came[CHAT].split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        told = json.loads(error.removeprefix(b"data: "))["error"]
        assert told["message"] == "The server is being stopped."
        for path, last in (
            ("/v1/messages", b"event: error"),
            ("/v1/responses", b"event: response.failed"),
        ):
            *_, end, rest = came[path].split(b"\n\n")
            assert rest == b""
            assert last in came[path]
            assert b"The server is being stopped." in end
        assert server.process.wait(SECONDS) == 0
    assert not any("Traceback" in line for line in server.lines)


def test_a_reply_that_is_nearly_whole_is_finished():
    with serving() as server, server.client() as client:
        stream = ask(client, stream=True, thinking_budget=60)
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        *_, last = stream
        assert last.choices[0].finish_reason == "stop"
        assert server.process.wait(SECONDS) == 0


def test_requests_that_come_late_find_no_server():
    with serving("--grace", 60, command=SLOW) as server:
        with connect(server.url) as connection:
            connection.sendall(request_of("POST", CHAT, json.dumps(ENDLESS).encode()))
            assert connection.recv(1 << 16)
            server.process.send_signal(signal.SIGTERM)
            while connection.recv(1 << 16):
                try:
                    connect(server.url).close()
                except ConnectionError:
                    break
            else:
                pytest.fail("the server went on listening")
            # A second interrupt does not wait for the reply.
            server.process.send_signal(signal.SIGINT)
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(SECONDS) == 130


def test_a_port_in_use_is_told_of_before_the_model_is_loaded():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"Port {port} of 127.0.0.1.*--port"):
            with running("./nothing", port=port):
                pass


def test_an_address_of_another_machine_is_one_line():
    for host in ("203.0.113.7", "no.such.name.invalid"):
        with pytest.raises(ValueError, match=f"{host}.*--host|Port 0 of {host}"):
            with running(host=host, no_api_key=True):
                pass


def test_requests_wait_while_the_model_is_loaded():
    command = [*SLOW, "--loading", "--port", "0"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        try:
            for line in process.stderr:
                if line.startswith("Listening at "):
                    break
            url = line.split()[2]
            health = get(url, "/health")
            assert (health.status, health.json()["status"]) == (503, "loading")
            found = []
            asked = threading.Thread(target=lambda: found.append(post(url, HONEST)))
            asked.start()
            process.stdin.write("go on\n")
            process.stdin.flush()
            asked.join(SECONDS)
            assert found[0].status == 200
            assert get(url, "/health").json()["status"] == "ok"
        finally:
            process.kill()


def test_a_key_can_come_from_the_environment(monkeypatch):
    asked = []
    monkeypatch.setattr(run, "run", lambda options, learner: asked.append(options))
    monkeypatch.setattr(run, "has_computed", False)
    environment = {"MLX_BUDGET_API_KEY": "from-there"}
    options = ["serve", "--model", "demo", "--host", "0.0.0.0", "--no-hard-stop"]
    CliRunner().invoke(cli, options, env=environment)
    CliRunner().invoke(cli, [*options, "--api-key", "from-here"], env=environment)
    assert [o.access.api_key for o in asked] == ["from-there", "from-here"]
    refused = CliRunner().invoke(cli, [*options, "--no-api-key"], env=environment)
    assert refused.exit_code == 2
    assert "not both" in refused.output
    assert "from-there" not in refused.output


def test_a_process_may_have_as_many_connections_open_as_it_is_to():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        limits.allow_files(256)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(hard, 512)
        limits.allow_files(1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(hard, 512)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_servers_in_one_program():
    with running(thinking_budget=20) as one:
        with running(thinking_budget=30) as other:
            assert one != other
        body = {"messages": MESSAGES, "max_tokens": 100}
        thinking = post(one, body).json()["choices"][0]["thinking"]
        assert thinking["budget"] == 20
        with openai.OpenAI(base_url=f"{one}/v1", api_key="none") as client:
            assert client.models.list().data[0].id == "demo"
    with pytest.raises(ConnectionError):
        connect(one)


def test_options_are_keywords():
    options = take_options(
        {"model": "x", "max_thinking_budget": 7, "effort": "low=5", "temp": 0.5}
    )
    assert options.policy.most == 7
    assert options.policy.efforts["low"] == 5
    told = options.namespace()
    assert (told.model, told.temp, told.decode_concurrency) == ("x", 0.5, 32)
    assert not hasattr(told, "api_key")
    for name in ("frobnicate", *NOT_SERVED):
        with pytest.raises(TypeError, match=name):
            take_options({name: 1})
    for name, wrong in (("port", 70_000), ("kv_bits", 1), ("max_connections", 0)):
        with pytest.raises(ValueError, match=name):
            take_options({name: wrong})
