"""Which of their ways to name a budget other people's clients bring to the server.

Runs in an environment of its own, against a server that runs already:

    python -m venv clients
    clients/bin/pip install litellm langchain-openai langchain-anthropic llm click
    mlx-budget serve --port 8080 &
    clients/bin/python benchmarks/serve_clients.py --port 8080

For each way it prints what was asked for and how, the budget that the server told in
its reply, and whether the client showed thinking and answer.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from recorder import recording

QUESTION = "What is 7 + 1 + 5 - 9 + 8?"
MESSAGES = [{"role": "user", "content": QUESTION}]
ENABLED = {"type": "enabled", "budget_tokens": 60}
LIMIT = 500
# What a client shows: texts of its thinking and of its answer.
Shown = tuple[str, str]
Try = Callable[[str], Shown]


def litellm_chat(**options: Any) -> Try:
    def ask(url: str) -> Shown:
        import litellm

        litellm.telemetry = False
        choice = litellm.completion(
            model="openai/demo",
            api_base=f"{url}/v1",
            api_key="none",
            messages=MESSAGES,
            max_tokens=LIMIT,
            **options,
        ).choices[0]
        thought = getattr(choice.message, "reasoning_content", None)
        return thought or "", choice.message.content or ""

    return ask


def litellm_messages(**options: Any) -> Try:
    def ask(url: str) -> Shown:
        import litellm

        message = (
            litellm.completion(
                model="anthropic/demo",
                api_base=url,
                api_key="none",
                messages=MESSAGES,
                max_tokens=LIMIT,
                **options,
            )
            .choices[0]
            .message
        )
        return message.reasoning_content or "", message.content or ""

    return ask


def litellm_responses(**options: Any) -> Try:
    def ask(url: str) -> Shown:
        import litellm

        reply = litellm.responses(
            model="openai/demo",
            api_base=f"{url}/v1",
            api_key="none",
            input=QUESTION,
            max_output_tokens=LIMIT,
            **options,
        )
        thoughts = [i for i in reply.output if i.type == "reasoning"]
        texts = [i.content[0].text for i in reply.output if i.type == "message"]
        return str(thoughts[0].summary if thoughts else ""), "".join(texts)

    return ask


def langchain(stream: bool = False, **options: Any) -> Try:
    def ask(url: str) -> Shown:
        from langchain_openai import ChatOpenAI

        model = ChatOpenAI(
            model="demo", base_url=f"{url}/v1", api_key="none", **options
        )
        return shown(model, stream)

    return ask


def langchain_messages(stream: bool = False, **options: Any) -> Try:
    def ask(url: str) -> Shown:
        from langchain_anthropic import ChatAnthropic

        model = ChatAnthropic(
            model="demo", base_url=url, api_key="none", max_tokens=LIMIT, **options
        )
        return shown(model, stream)

    return ask


def shown(model: Any, stream: bool) -> Shown:
    """What a model of LangChain's shows."""
    message: Any = None
    if stream:
        for chunk in model.stream(QUESTION):
            message = chunk if message is None else message + chunk
    else:
        message = model.invoke(QUESTION)
    texts = {"reasoning": "", "text": ""}
    for block in message.content_blocks:
        if block["type"] in texts:
            texts[block["type"]] += block.get(block["type"]) or ""
    return texts["reasoning"], texts["text"]


def llm(*options: str) -> Try:
    def ask(url: str) -> Shown:
        with tempfile.TemporaryDirectory() as folder:
            entry = {"model_id": "demo", "model_name": "demo", "reasoning": True}
            entry["api_base"] = f"{url}/v1"
            file = Path(folder, "extra-openai-models.yaml")
            file.write_text(json.dumps([entry]))  # JSON is YAML
            program = str(Path(sys.executable).parent / "llm")
            done = subprocess.run(
                [program, "-m", "demo", "--key", "none", QUESTION, *options],
                env={**os.environ, "LLM_USER_PATH": folder},
                capture_output=True,
                text=True,
            )
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return "", done.stdout

    return ask


EXTRA = {"extra_body": {"thinking_budget": 60}}
REASONING = {"effort": "low", "summary": "auto"}
TRIES: dict[tuple[str, str], Try] = {
    ("litellm", "chat, reasoning_effort=low"): litellm_chat(reasoning_effort="low"),
    ("litellm", "chat, thinking=..."): litellm_chat(thinking=ENABLED),
    ("litellm", "chat, extra_body thinking_budget"): litellm_chat(**EXTRA),
    ("litellm", "chat, extra_body thinking"): litellm_chat(
        extra_body={"thinking": ENABLED}
    ),
    ("litellm", "anthropic/, thinking=..."): litellm_messages(thinking=ENABLED),
    ("litellm", "the same, allowed_openai_params"): litellm_messages(
        thinking=ENABLED, allowed_openai_params=["thinking"]
    ),
    ("litellm", "anthropic/, reasoning_effort=low"): litellm_messages(
        reasoning_effort="low"
    ),
    ("litellm", "responses, reasoning"): litellm_responses(reasoning=REASONING),
    ("litellm", "responses, extra_body"): litellm_responses(**EXTRA),
    ("langchain-openai", "reasoning_effort=low"): langchain(reasoning_effort="low"),
    ("langchain-openai", "extra_body thinking_budget"): langchain(**EXTRA),
    ("langchain-openai", "the same, streamed"): langchain(True, **EXTRA),
    ("langchain-openai", "responses, reasoning"): langchain(
        use_responses_api=True, reasoning=REASONING
    ),
    ("langchain-openai", "responses, extra_body"): langchain(
        use_responses_api=True, **EXTRA
    ),
    ("langchain-openai", "responses, reasoning, streamed"): langchain(
        True, use_responses_api=True, reasoning=REASONING
    ),
    ("langchain-anthropic", "thinking=..."): langchain_messages(thinking=ENABLED),
    ("langchain-anthropic", "the same, streamed"): langchain_messages(
        True, thinking=ENABLED
    ),
    ("llm", "-o reasoning_effort low"): llm("-o", "reasoning_effort", "low"),
    ("llm", "the same, --no-stream"): llm(
        "-o", "reasoning_effort", "low", "--no-stream"
    ),
}


@click.command()
@click.option("--port", type=int, required=True, help="Of the server.")
def main(port: int) -> None:
    """Prints a table of clients and their ways to name a budget."""
    print("| client | asked by | sent to | budget told | thinking | answer |")
    print("|---|---|---|---|---|---|")
    requests: list[dict[str, Any]] = []
    with recording(port, requests) as url:
        for (client, way), ask in TRIES.items():
            requests.clear()
            try:
                thought, answer = ask(url)
            except Exception as e:
                told = re.sub(r"\s+", " ", f"{type(e).__name__}: {e}")[:160]
                print(f"| {client} | {way} | {paths(requests)} | {told} | | |")
                continue
            words = ("shown" if thought else "-", "shown" if "12" in answer else "-")
            name = f"{client} {importlib.metadata.version(client)}"
            budget = ", ".join(map(budget_of, requests))
            print(
                f"| {name} | {way} | {paths(requests)} | {budget} | {words[0]} "
                f"| {words[1]} |",
                flush=True,
            )


def paths(requests: list[dict[str, Any]]) -> str:
    """Where the requests went."""
    return ", ".join(request["path"].removeprefix("POST ") for request in requests)


def budget_of(request: dict[str, Any]) -> str:
    """The budget that the server told in a reply."""
    found = re.findall(r'"thinking": \{"budget": (\w+)', request["reply"])
    return found[-1] if found else request["reply"][:160]


if __name__ == "__main__":
    main()
