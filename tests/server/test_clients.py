"""Other people's clients, as they are, against the server: what they ask is kept.

Each needs its own package, from the extra `clients`; without it its tests are skipped.
"""

import json
import os
import subprocess
import sys

import pytest

from benchmarks.recorder import recording
from served import QUESTION

# What they warn of is theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

MESSAGES = [{"role": "user", "content": QUESTION}]
BUDGET = 60
EXTRA = {"extra_body": {"thinking_budget": BUDGET}}
ENABLED = {"type": "enabled", "budget_tokens": BUDGET}
LITELLM = {"model": "openai/demo", "api_key": "none"}
RIGHT = "12"


@pytest.fixture
def asked(server):
    """The server's address, with the requests and replies that go over it."""
    requests: list[dict] = []
    with recording(server.port, requests) as url:
        yield url, requests


def budget_told(requests: list[dict]) -> object:
    """The budget that the server says it has kept, in the only reply."""
    (request,) = requests
    told = request["reply"].rpartition('"thinking": {"budget": ')[2]
    return json.JSONDecoder().raw_decode(told)[0]


@pytest.mark.parametrize(
    ("options", "budget"),
    [(EXTRA, BUDGET), ({"extra_body": {"thinking": ENABLED}}, BUDGET)],
    ids=["number", "thinking"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_litellm_chats(asked, options, budget, stream):
    litellm = pytest.importorskip("litellm")
    url, requests = asked
    reply = litellm.completion(
        **LITELLM,
        api_base=f"{url}/v1",
        messages=MESSAGES,
        max_tokens=500,
        stream=stream,
        **options,
    )
    if stream:
        parts = [chunk.choices[0].delta for chunk in reply]
        answer = "".join(part.content or "" for part in parts)
    else:
        answer = reply.choices[0].message.content
    assert RIGHT in answer
    assert budget_told(requests) == budget


def test_litellm_asks_for_responses(asked):
    litellm = pytest.importorskip("litellm")
    url, requests = asked
    reply = litellm.responses(
        **LITELLM,
        api_base=f"{url}/v1",
        input=QUESTION,
        max_output_tokens=500,
        **EXTRA,
    )
    assert {item.type for item in reply.output} == {"reasoning", "message"}
    assert requests[0]["path"] == "POST /v1/responses"
    assert budget_told(requests) == BUDGET


def chat_model(openai, url: str, **options):
    """The server's model, as LangChain has it."""
    return openai.ChatOpenAI(
        model="demo", base_url=f"{url}/v1", api_key="none", **options
    )


@pytest.mark.parametrize("is_response", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_langchain_chats(asked, is_response, stream):
    openai = pytest.importorskip("langchain_openai")
    url, requests = asked
    model = chat_model(openai, url, use_responses_api=is_response, **EXTRA)
    if stream:
        first, *rest = model.stream(QUESTION)
        message = sum(rest, first)
    else:
        message = model.invoke(QUESTION)
    texts = [b["text"] for b in message.content_blocks if b["type"] == "text"]
    assert RIGHT in "".join(texts)
    assert budget_told(requests) == BUDGET


def test_langchain_gives_structured_output(asked):
    openai = pytest.importorskip("langchain_openai")
    pydantic = pytest.importorskip("pydantic")
    url, requests = asked

    class Result(pydantic.BaseModel):
        """The result of a sum."""

        value: int = pydantic.Field(ge=0, le=99)

    model = chat_model(openai, url, **EXTRA)
    found = model.with_structured_output(Result, method="json_schema").invoke(QUESTION)
    assert isinstance(found, Result)
    assert budget_told(requests) == BUDGET


def test_langchain_names_a_level(asked):
    openai = pytest.importorskip("langchain_openai")
    url, requests = asked
    model = chat_model(openai, url, reasoning_effort="low")
    assert RIGHT in model.invoke(QUESTION).text
    assert 0 < budget_told(requests) < 200


def test_the_command_llm_names_a_level(asked, tmp_path):
    pytest.importorskip("llm")
    url, requests = asked
    entry = {"model_id": "demo", "model_name": "demo", "reasoning": True}
    entry["api_base"] = f"{url}/v1"
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "llm"),
            *("-m", "demo", "--key", "none", "-o", "reasoning_effort", "low", QUESTION),
        ],
        env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert RIGHT in done.stdout
    assert 0 < budget_told(requests) < 200
