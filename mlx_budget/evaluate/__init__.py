"""Accuracy against thinking budget: strategies, tasks, grading, metrics and plots."""

from ..lazy import import_when_used

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

TYPE_CHECKING = False

if TYPE_CHECKING:
    from .folder import read_records
    from .options import EvaluateOptions
    from .run import Progress, evaluate
    from .strategies import BudgetRequest, parse_budgets
    from .summary import summarize
    from .tasks import Problem, Task, load_task
else:
    __getattr__, __dir__ = import_when_used(
        __name__,
        {
            "BudgetRequest": "strategies",
            "EvaluateOptions": "options",
            "Problem": "tasks",
            "Progress": "run",
            "Task": "tasks",
            "evaluate": "run",
            "load_task": "tasks",
            "parse_budgets": "strategies",
            "read_records": "folder",
            "summarize": "summary",
        },
    )
