"""Chat records to read in tests, and the call that reads them."""

from mlx_budget.engine.fields import take
from mlx_budget.engine.settings import PromptOptions, ThinkingBudget
from mlx_budget.train.records import Record, SkippedRecords, read_records

USER = {"role": "user", "content": "hi"}


def chat(content: str, **keys) -> dict:
    return {"messages": [USER, {"role": "assistant", "content": content}], **keys}


def read(tokenizer, *data, skipped=None, **options) -> list[Record]:
    skipped = SkippedRecords() if skipped is None else skipped
    values = {
        "thinking": take(ThinkingBudget, options),
        "prompt": take(PromptOptions, options),
    }
    return list(read_records(data, tokenizer, skipped=skipped, **values, **options))
