"""A small reasoning model that ships with the package, and how it is made.

Knows where its files are; nothing of how models are loaded.
"""

from pathlib import Path

NAME = "demo"
FOLDER = Path(__file__).parent / "model"
PROBLEMS_FILE = Path(__file__).parent / "problems.jsonl"
NOTICE = (
    "No --model given: using demo, a tiny built-in model. Its world is sums of single "
    'digits, such as "What is 7 + 1 + 5 - 9 + 8?" or a short story of them.'
)
