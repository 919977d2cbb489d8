"""Fixtures that the server's test files share: a server of the demo, and the demo."""

import pytest

from mlx_budget import load
from serve_scripted import running_scripted
from served import serving


@pytest.fixture(scope="session")
def server():
    """A server with its default options; leave it as it is."""
    with serving("--log-level", "WARNING") as server:
        yield server
        assert not [line for line in server.lines if "Traceback" in line]


@pytest.fixture(scope="session")
def scripted():
    """A server with a script for its model, which calls a tool."""
    with running_scripted() as server:
        yield server


@pytest.fixture(scope="session")
def model():
    """The built-in model, its tokenizer and its predictor."""
    return load("demo")


@pytest.fixture(scope="session")
def endless(model) -> dict:
    """What makes a reply that goes on until it is stopped."""
    vocabulary = model[1].get_vocab()
    bias = {str(vocabulary[token]): -100 for token in ("</think>", "<|im_end|>")}
    return {"logit_bias": bias, "max_tokens": 1_000_000}
