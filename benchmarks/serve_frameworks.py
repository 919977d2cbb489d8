"""Whether other people's agent frameworks come to an end with the server.

Each has a tool, calls it once, and answers. Runs in an environment of its own, against
a server with a stand-in for a model:

    python -m venv clients
    clients/bin/pip install openai-agents 'pydantic-ai-slim[openai,anthropic]' click
    python benchmarks/agent_model.py --port 8080 \\
        --call '{"name": "add", "arguments": {"a": 2, "b": 3}}' &
    clients/bin/python benchmarks/serve_frameworks.py --port 8080
"""

import asyncio
import importlib.metadata
import re
from collections.abc import Callable
from typing import Any

import click

from recorder import recording

QUESTION = "Add 2 and 3."
BUDGET = {"type": "enabled", "budget_tokens": 60}


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


def agents(stream: bool) -> Callable[[str], str]:
    """OpenAI's Agents SDK, which speaks Responses."""

    def ask(url: str) -> str:
        from agents import (
            Agent,
            ModelSettings,
            OpenAIResponsesModel,
            Runner,
            function_tool,
            set_tracing_disabled,
        )
        from openai import AsyncOpenAI
        from openai.types.shared import Reasoning

        set_tracing_disabled(True)
        reasoning = Reasoning(effort="low", summary="auto")

        async def run() -> str:
            client = AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
            agent = Agent(
                name="adder",
                instructions="Be brief.",
                tools=[function_tool(add)],
                model=OpenAIResponsesModel("demo", client),
                model_settings=ModelSettings(reasoning=reasoning),
            )
            if not stream:
                return (await Runner.run(agent, QUESTION)).final_output
            result = Runner.run_streamed(agent, QUESTION)
            async for _ in result.stream_events():
                pass
            return result.final_output

        return asyncio.run(run())

    return ask


def pydantic_ai(interface: str) -> Callable[[str], str]:
    """Pydantic AI, which speaks all three interfaces."""

    def ask(url: str) -> str:
        from pydantic_ai import Agent
        from pydantic_ai.models.anthropic import AnthropicModel
        from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
        from pydantic_ai.providers.anthropic import AnthropicProvider
        from pydantic_ai.providers.openai import OpenAIProvider

        settings: dict[str, Any] = {"openai_reasoning_effort": "low"}
        model: Any
        if interface == "messages":
            provider = AnthropicProvider(base_url=url, api_key="none")
            model = AnthropicModel("demo", provider=provider)
            settings = {"anthropic_thinking": BUDGET, "max_tokens": 500}
        else:
            kinds = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}
            openai = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
            model = kinds[interface]("demo", provider=openai)
        agent = Agent(model, instructions="Be brief.", model_settings=settings)
        agent.tool_plain(add)
        return agent.run_sync(QUESTION).output

    return ask


def tool_runner(url: str) -> str:
    """The loop of Anthropic's own client."""
    import anthropic

    def adds(a: int, b: int) -> str:
        """Adds two numbers."""
        return str(add(a, b))

    adds.__name__ = "add"
    client = anthropic.Anthropic(base_url=url, api_key="none")
    turns = client.beta.messages.tool_runner(
        model="demo",
        max_tokens=500,
        tools=[anthropic.beta_tool(adds)],
        messages=[{"role": "user", "content": QUESTION}],
        thinking=BUDGET,
    )
    return list(turns)[-1].content[-1].text


TRIES: dict[tuple[str, str], Callable[[str], str]] = {
    ("openai-agents", "whole"): agents(False),
    ("openai-agents", "streamed"): agents(True),
    ("pydantic-ai-slim", "chat"): pydantic_ai("chat"),
    ("pydantic-ai-slim", "responses"): pydantic_ai("responses"),
    ("pydantic-ai-slim", "messages"): pydantic_ai("messages"),
    ("anthropic", "tool_runner"): tool_runner,
}


@click.command()
@click.option("--port", type=int, required=True, help="Of the server.")
def main(port: int) -> None:
    """Prints a table of frameworks, their requests, and whether they answered."""
    print("| framework | way | requests | budgets told | answered |")
    print("|---|---|---|---|---|")
    requests: list[dict[str, Any]] = []
    with recording(port, requests) as url:
        for (name, way), ask in TRIES.items():
            requests.clear()
            try:
                answer = " ".join(ask(url).split())
            except Exception as e:
                answer = " ".join(f"{type(e).__name__}: {e}".split())[:200]
            sent = ", ".join(f"{r['path']} {r['status']}" for r in requests)
            found = (re.findall(r'"budget": (\w+)', r["reply"]) for r in requests)
            budgets = ", ".join(told[-1] for told in found if told)
            version = importlib.metadata.version(name)
            print(f"| {name} {version} | {way} | {sent} | {budgets} | {answer} |")


if __name__ == "__main__":
    main()
