"""Whether other people's clients get answers by a JSON schema from the server.

Runs in an environment of its own, against a server of the built-in model that runs
already:

    python -m venv clients
    clients/bin/pip install langchain-openai langchain-anthropic litellm instructor \\
        pydantic-ai-slim[openai] click
    mlx-budget serve --port 8080 --thinking-budget 40 &
    clients/bin/python benchmarks/serve_structured.py --port 8080

For each way it prints how many of some questions came back as an object of the schema.
"""

import importlib.metadata
import re
from collections.abc import Callable
from typing import Any

import click
import pydantic

QUESTIONS = (
    "What is 7 + 1 + 5 - 9 + 8?",
    "What is 2 + 3 + 4 - 1?",
    "What is 9 - 4 + 2?",
)
LIMIT = 400


class Sum(pydantic.BaseModel):
    """The value of a sum."""

    answer: int = pydantic.Field(ge=-99, le=99)
    kind: str = pydantic.Field(pattern="^(sum|story)$")


Try = Callable[[str, str], Any]


def openai_parse(url: str, question: str) -> Any:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    reply = client.chat.completions.parse(
        model="demo",
        messages=[{"role": "user", "content": question}],
        response_format=Sum,
        max_tokens=LIMIT,
    )
    return reply.choices[0].message.parsed


def openai_responses(url: str, question: str) -> Any:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    reply = client.responses.parse(
        model="demo", input=question, text_format=Sum, max_output_tokens=LIMIT
    )
    return reply.output_parsed


def langchain(method: str, **options: Any) -> Try:
    def ask(url: str, question: str) -> Any:
        from langchain_openai import ChatOpenAI

        model = ChatOpenAI(
            model="demo",
            base_url=f"{url}/v1",
            api_key="none",
            max_tokens=LIMIT,
            **options,
        )
        return model.with_structured_output(Sum, method=method).invoke(question)

    return ask


def langchain_messages(method: str) -> Try:
    def ask(url: str, question: str) -> Any:
        from langchain_anthropic import ChatAnthropic

        model = ChatAnthropic(
            model="demo", base_url=url, api_key="none", max_tokens=LIMIT
        )
        return model.with_structured_output(Sum, method=method).invoke(question)

    return ask


def litellm(url: str, question: str) -> Any:
    import litellm

    reply = litellm.completion(
        model="openai/demo",
        api_base=f"{url}/v1",
        api_key="none",
        messages=[{"role": "user", "content": question}],
        response_format=Sum,
        max_tokens=LIMIT,
    )
    return Sum.model_validate_json(reply.choices[0].message.content)


def instructor(url: str, question: str) -> Any:
    import instructor
    import openai

    client = instructor.from_openai(
        openai.OpenAI(base_url=f"{url}/v1", api_key="none"),
        mode=instructor.Mode.JSON_SCHEMA,
    )
    return client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": question}],
        response_model=Sum,
        max_tokens=LIMIT,
        max_retries=0,
    )


def pydantic_ai(url: str, question: str) -> Any:
    from pydantic_ai import Agent, NativeOutput
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{url}/v1", api_key="none")
    profile = {"supports_json_schema_output": True}
    model = OpenAIChatModel("demo", provider=provider, profile=profile)
    agent = Agent(model, output_type=NativeOutput(Sum), retries=0)
    return agent.run_sync(question, model_settings={"max_tokens": LIMIT}).output


TRIES: dict[tuple[str, str], Try] = {
    ("openai", "chat.completions.parse"): openai_parse,
    ("openai", "responses.parse"): openai_responses,
    ("langchain-openai", "json_schema"): langchain("json_schema"),
    ("langchain-openai", "json_schema, Responses"): langchain(
        "json_schema", use_responses_api=True
    ),
    ("langchain-openai", "json_mode"): langchain("json_mode"),
    ("langchain-openai", "function_calling"): langchain("function_calling"),
    ("langchain-anthropic", "json_schema"): langchain_messages("json_schema"),
    ("litellm", "response_format"): litellm,
    ("instructor", "Mode.JSON_SCHEMA"): instructor,
    ("pydantic-ai-slim", "NativeOutput"): pydantic_ai,
}


@click.command()
@click.option("--port", type=int, required=True, help="Of the server.")
def main(port: int) -> None:
    """Prints a table of clients and what came of each way."""
    url = f"http://127.0.0.1:{port}"
    print("| client | by | objects of the schema | else |")
    print("|---|---|---|---|")
    for (client, way), ask in TRIES.items():
        try:
            name = f"{client} {importlib.metadata.version(client)}"
        except importlib.metadata.PackageNotFoundError:
            print(f"| {client} | {way} | not installed | |")
            continue
        right, told = 0, ""
        for question in QUESTIONS:
            try:
                right += isinstance(ask(url, question), Sum)
            except Exception as e:
                told = re.sub(r"\s+", " ", f"{type(e).__name__}: {e}")[:200]
        print(f"| {name} | {way} | {right} of {len(QUESTIONS)} | {told} |", flush=True)


if __name__ == "__main__":
    main()
