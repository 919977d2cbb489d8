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
    from .arms import BudgetRequest, parse_budgets
    from .folder import read_records
    from .options import EvaluateOptions
    from .run import Progress, evaluate
    from .summary import summarize
    from .tasks import Problem, Task, load_task
else:
    __getattr__, __dir__ = import_when_used(
        __name__,
        {
            "BudgetRequest": "arms",
            "EvaluateOptions": "options",
            "Problem": "tasks",
            "Progress": "run",
            "Task": "tasks",
            "evaluate": "run",
            "load_task": "tasks",
            "parse_budgets": "arms",
            "read_records": "folder",
            "summarize": "summary",
        },
    )
