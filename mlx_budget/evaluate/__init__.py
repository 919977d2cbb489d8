"""Accuracy against thinking budget: strategies, tasks, grading, metrics and plots."""

from .options import EvaluateOptions
from .run import Progress, evaluate, read_records
from .strategies import BudgetRequest, parse_budgets
from .summary import summarize
from .tasks import Problem, Task, load_task

__all__ = [
    "BudgetRequest",
    "EvaluateOptions",
    "Problem",
    "Progress",
    "Task",
    "evaluate",
    "load_task",
    "parse_budgets",
    "read_records",
    "summarize",
]
