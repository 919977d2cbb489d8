"""The questions of an evaluation, with their reference answers and instruction.

Knows files, datasets and fields; nothing of models, budgets or grading.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path

from ..engine.context import check_unicode
from ..engine.lettered import LETTERS, read_choices, with_choices
from ..engine.messages import as_chat, as_prompt, brief, describe_fields
from ..files.records import Record
from ..files.rows import Row, read_rows
from ..planning.plans import Plan, plan_from
from .choice_tasks import read_gpqa, read_medmcqa, read_medqa
from .problems import CHOICES_INSTRUCTION, Problem, Task

MATHS_INSTRUCTION = (
    "Please reason step by step, and put your final answer within \\boxed{}."
)

_QUESTIONS = ("question", "problem", "prompt", "messages")
_DEMO = Path(__file__).parent.parent / "demo" / "problems.jsonl"


@dataclass(frozen=True)
class TaskSource:
    """Where a task that has a name comes from.

    Attributes:
        about: What it is, in a few words.
        data: A file, or a file of a dataset on the Hub (owner/name/path).
        id_field: The field that names a problem; without it the row number does.
        instruction: The task's instruction, unless another is given.
        columns: What is read of a table in another form.
        read: Makes a row of one's own form of a row of that.
    """

    about: str
    data: str
    id_field: str | None = None
    instruction: str = MATHS_INSTRUCTION
    columns: tuple[str, ...] = ()
    read: Callable[[Record], Record] | None = None


TASKS = {
    "gsm8k": TaskSource(
        "grade school word problems, 1,319 of them",
        "openai/gsm8k/main/test-00000-of-00001.parquet",
    ),
    "math-500": TaskSource(
        "competition mathematics, 500 problems",
        "HuggingFaceH4/MATH-500/test.jsonl",
        "unique_id",
    ),
    "aime-2024": TaskSource(
        "the 30 problems of AIME 2024",
        "HuggingFaceH4/aime_2024/data/train-00000-of-00001.parquet",
        "id",
    ),
    "aime-2025": TaskSource(
        "the 30 problems of AIME 2025", "math-ai/aime25/test.jsonl", "id"
    ),
    "medmcqa": TaskSource(
        "entrance examinations of medicine, 4,183 questions with four choices",
        "openlifescienceai/medmcqa/data/validation-00000-of-00001.parquet",
        "id",
        CHOICES_INSTRUCTION,
        ("cop", "id", "question", "opa", "opb", "opc", "opd"),
        read_medmcqa,
    ),
    "medqa": TaskSource(
        "medical licensing examinations (USMLE), 1,273 questions with four choices",
        "GBaker/MedQA-USMLE-4-options/phrases_no_exclude_test.jsonl",
        None,
        CHOICES_INSTRUCTION,
        ("answer_idx", "question", "options"),
        read_medqa,
    ),
    "gpqa-diamond": TaskSource(
        "science for graduates, 198 questions with four choices; ask for access first",
        "Idavidrein/gpqa/gpqa_diamond.csv",
        "id",
        CHOICES_INSTRUCTION,
        (
            "Correct Answer",
            "Record ID",
            "Question",
            *(f"Incorrect Answer {n}" for n in (1, 2, 3)),
        ),
        read_gpqa,
    ),
    "demo": TaskSource(
        "500 problems that ship with mlx-budget", str(_DEMO), instruction=""
    ),
}


def load_task(
    name: str | None,
    data: Path | None,
    limit: int | None = None,
    instruction: str | None = None,
) -> Task:
    """The problems of a named task, or of a file of one's own.

    Args:
        name (str, optional): One of `TASKS`, or `lm-eval:NAME`, a task of the LM
            Evaluation Harness.
        data (Path, optional): A file whose rows have `question` (or `problem` or
            `prompt`, or a chat of one question as `messages`) and `answer`, a text or a
            number. What follows "####" in an answer is the answer. A row may have an
            `id`, and `choices`: a list of texts, or true if they are in the question.
            Its answer is then a letter. A `plan` is followed by the strategies that
            plan, in place of one of the model's.
        limit (int, optional): How many problems to take, the first ones.
        instruction (str, optional): Put behind every question instead of the default.

    Raises:
        ValueError: In one line, naming the row that cannot be used.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"The limit must be at least 1 problem, not {limit}.")
    names = ", ".join(TASKS)
    if name is not None and data is not None:
        raise ValueError(
            f"Give a task or a file of problems, not both ({name} and {data})."
        )
    id_field: str | None = "id"
    default: str | None = None
    task = TaskSource("", "")
    if data is not None:
        title, source = Path(data.name.removesuffix(".gz")).stem, str(data)
    elif name is None:
        raise ValueError(
            f"There is nothing to evaluate on: give a task ({names}) or a file of "
            "problems."
        )
    elif name.startswith("lm-eval:"):
        # Imported here, for few need it.
        from .harness import load_harness_task

        return load_harness_task(name, limit, instruction)
    elif name in TASKS:
        task = TASKS[name]
        title, source = name, task.data
        id_field, default = task.id_field, task.instruction
    else:
        raise ValueError(
            f"There is no task {name!r}; the tasks are {names}, and lm-eval:NAME for "
            "those of the LM Evaluation Harness."
        )
    problems = tuple(islice(_read_problems(source, id_field, task), limit))
    if not problems:
        raise ValueError(f"{source} holds no problems.")
    if default is None:
        all_choices = all(problem.choices for problem in problems)
        default = CHOICES_INSTRUCTION if all_choices else ""
    return Task(title, problems, default if instruction is None else instruction)


def _read_problems(
    source: str, id_field: str | None, task: TaskSource
) -> Iterator[Problem]:
    # The first column is the one that a Parquet file must have.
    columns = ["answer", *_QUESTIONS, "choices", "plan"] + (
        [id_field] if id_field else []
    )
    names: dict[str, str] = {}
    for number, row in enumerate(read_rows(source, task.columns or columns)):
        if task.read is not None and isinstance(row.value, dict):
            row = row._replace(value=task.read(row.value))
        problem = _problem_of(row, number, id_field)
        if problem.id in names:
            raise ValueError(
                f"{row.name} has the id {problem.id!r}, which {names[problem.id]} has "
                "already: every problem needs its own."
            )
        names[problem.id] = row.name
        yield problem


def _problem_of(row: Row, number: int, id_field: str | None) -> Problem:
    if not row.is_json:
        raise ValueError(f"{row.name} is not valid JSON ({row.fault}).")
    if not isinstance(row.value, dict):
        raise ValueError(
            f"{row.name} is not a JSON object with question and answer: "
            f"{brief(row.value)}."
        )
    record = row.value
    check_unicode(json.dumps(record, ensure_ascii=False, default=str), row.name)
    question = _question_of(record, row.name)
    answer = _answer_of(record, row.name)
    try:
        choices = read_choices(record)
    except ValueError as e:
        raise ValueError(f"{row.name} {e}") from None
    question = with_choices(question, choices)
    if choices:
        count = len(choices) if isinstance(choices, list) else len(LETTERS)
        _check_letter(answer, LETTERS[:count], row.name)
    name = _id_of(record, number, id_field, row.name)
    plan = _plan_of(record, row.name)
    return Problem(name, question, answer, bool(choices), plan)


def _plan_of(record: Record, where: str) -> Plan | None:
    if (given := record.get("plan")) is None:
        return None
    try:
        return plan_from(json.loads(given) if isinstance(given, str) else given)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{where}, plan: {e}") from None


def _question_of(record: Record, where: str) -> str:
    field = next((f for f in _QUESTIONS if record.get(f) is not None), None)
    if field is None:
        raise ValueError(
            f"{where} has no question: it has {describe_fields(record)}, and a "
            "question is read from question, problem, prompt or messages."
        )
    given = record[field]
    try:
        is_json = field == "messages" and isinstance(given, str)
        question = as_prompt(as_chat(given) if is_json else given)
    except ValueError as e:
        raise ValueError(f"{where}, {field}: {e}.") from None
    if question is None:
        raise ValueError(
            f"{where} has {brief(given)} for its {field}: give a text that is not "
            "empty."
        )
    if not isinstance(question, str):
        if len(question) > 1:
            raise ValueError(
                f"{where} has a chat of {len(question)} messages for its {field}: an "
                "evaluation asks one question, without a system prompt."
            )
        question = question[0]["content"]
    return question.strip()


def _answer_of(record: Record, where: str) -> str:
    answer = record.get("answer")
    if answer is None:
        raise ValueError(
            f"{where} has no answer: it has {describe_fields(record)}, and an answer "
            "is read from answer."
        )
    if isinstance(answer, str) and (text := answer.rpartition("####")[2].strip()):
        return text
    if isinstance(answer, int) and not isinstance(answer, bool):
        return str(answer)
    if isinstance(answer, float) and math.isfinite(answer):
        # Without an exponent, which would be read as the letter e.
        return format(Decimal(repr(answer)), "f")
    raise ValueError(
        f"{where} has {brief(answer)} for its answer: give a number, or a text that "
        "is not empty."
    )


def _check_letter(answer: str, letters: str, where: str) -> None:
    if len(answer) != 1 or answer not in letters:
        raise ValueError(
            f"{where} has choices and the answer {brief(answer)}: give the letter of "
            f"the right choice, A to {letters[-1]}."
        )


def _id_of(record: Record, number: int, id_field: str | None, where: str) -> str:
    value = record.get(id_field) if id_field else None
    if value is None:
        return str(number)
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int and not (isinstance(value, str) and value.strip()):
        raise ValueError(
            f"{where} has {brief(value)} for its {id_field}: give a text that is not "
            "empty, or a whole number."
        )
    return str(value).strip()
