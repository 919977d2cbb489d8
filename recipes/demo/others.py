"""What people ask a demo besides its sums, and the system prompts that they set.

Knows texts alone; nothing of how they are answered.
"""

import random
from functools import cache

from mlx_budget.engine.prompt_files import read_prompts
from mlx_budget.train.builtin_prompts import BUILT_IN

# One in so many of the prompts is never trained on.
_HELD_OUT = 5

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a careful mathematician. Work step by step.",
    "Answer briefly.",
    "Be kind and patient.",
    "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    "You are a tutor for children in the second year of school.",
    "Always answer in English.",
    "Think before you answer.",
    "You are a concise expert. Give the result and nothing else.",
    "The user is in a hurry.",
    "Do not make things up.",
    "You help with homework. Explain what you do.",
    "Use plain words and short sentences.",
    "Today is a good day. You are a friendly bot.",
    "Never apologise.",
    "You are an accountant who checks every figure twice.",
)
_TALK = (
    "Thank you",
    "thank you",
    "Thank you!",
    "Thanks",
    "thanks a lot!",
    "Thanks, that is right.",
    "Hello",
    "Hello!",
    "hi",
    "Hi there",
    "Hey, how are you?",
    "Good morning",
    "Goodbye",
    "bye",
    "ok",
    "Okay, great.",
    "Well done.",
    "Are you sure?",
    "Why?",
    "Who are you?",
    "What are you?",
    "What can you do?",
    "What do you know?",
    "Help",
    "Can you help me?",
    "Tell me a joke.",
    "Tell me about yourself.",
    "Are you alive?",
    "Do you speak French?",
    "That is wrong.",
    "test",
    "Please explain.",
    "I do not understand.",
    "What is your name?",
    "How old are you?",
)
_PLACES = ("France", "Peru", "Japan", "Kenya", "Norway", "Spain", "Chad", "Nepal")
_TOPICS = ("rain", "the moon", "bread", "tigers", "music", "the sea", "chess", "gold")
_FACTS = (
    "What is the capital of {place}?",
    "How many people live in {place}?",
    "Where is {place}?",
    "Write a poem about {topic}.",
    "What is {topic}?",
    "Tell me about {topic}.",
    "Why do people like {topic}?",
    "Explain {topic} to a child.",
    "Write a story about {topic} in {place}.",
)
_SUMS = (
    "What is {a} * {b}?",
    "What is {a} x {b}?",
    "{a} / {b}",
    "Calculate {a} times {b}.",
    "What is {a} divided by {b}?",
    "What is {long} + {a}?",
    "{long} - {a}",
    "What is {a} + {long}?",
    "Work out {long} + {longer}.",
    "What is the square root of {long}?",
    "How much is {a} % of {long}?",
    "Solve x + {a} = {long}.",
    "Is {long} a prime number?",
    "{a} ^ {b}",
    "What is 0.{a} + 0.{b}?",
    "Mia has {long} shells and finds {longer} more. How many shells are there now?",
)


@cache
def prompts(held_out: bool) -> list[str]:
    """The package's own prompts of everyday questions, in their order.

    Args:
        held_out (bool): Whether those that are never trained on are asked for.
    """
    return [
        prompt
        for i, prompt in enumerate(read_prompts(BUILT_IN))
        if (i % _HELD_OUT == 0) == held_out
    ]


def draw_other(rng: random.Random) -> str:
    """A question or remark other than the demo's sums."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(_TALK)
    if kind < 0.5:
        return rng.choice(prompts(held_out=False))
    if kind < 0.7:
        names = {"place": rng.choice(_PLACES), "topic": rng.choice(_TOPICS)}
        return rng.choice(_FACTS).format(**names)
    return rng.choice(_SUMS).format(
        a=rng.randint(2, 9),
        b=rng.randint(2, 9),
        long=rng.randint(10, 999),
        longer=rng.randint(10, 99),
    )


def draw_system_prompt(rng: random.Random, share: float) -> str | None:
    """A system prompt, in a share of draws."""
    return rng.choice(SYSTEM_PROMPTS) if rng.random() < share else None
