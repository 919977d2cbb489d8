"""Our models as one of the LM Evaluation Harness, and the harness's command with it.

The harness finds no models of other packages by itself, so `python -m
mlx_budget.evaluate.lm_eval` is its command `lm_eval` with the model `mlx-budget` added.
Knows the harness's requests; nothing of tasks, or of how replies are generated.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from .. import demo
from ..engine.batch import stream_batch_generate
from ..engine.context import context_length
from ..engine.prompts import encode_chat
from ..engine.settings import seed_of
from ..models.loading import load
from .harness import until_stop

_OF_LOADING = ("adapter_path", "revision", "trust_remote_code")
# What the harness gives to every model, and has no meaning here.
_OF_HARNESS = ("device", "max_batch_size")


@register_model("mlx-budget")
class BudgetLM(LM):
    """A model that thinks within a budget; what it answers is the reply.

    Args:
        model (str): Folder, name on the Hub, or demo.
        predictor (str, optional): As for `mlx_budget.load`; "none" for the hard stop
            alone.
        batch_size (int): Most replies to generate at a time.
        seed (int): Of the draws; every request has its own.
        **options: Those of `mlx_budget.batch_generate`, such as thinking_budget,
            hard_stop, temp and max_tokens. They go before what a task asks for; a
            task's max_gen_toks limits the answer, not the thinking.

    Raises:
        ValueError: Naming the option that is not allowed.
    """

    def __init__(
        self,
        model: str = demo.NAME,
        predictor: str | None = None,
        batch_size: int | str = 8,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        for name in _OF_HARNESS:
            options.pop(name, None)
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise ValueError(f"batch_size must be 1 or more, not {batch_size!r}.")
        loading = {k: options.pop(k) for k in _OF_LOADING if k in options}
        chosen = False if str(predictor).lower() in ("none", "false") else predictor
        chosen = None if predictor is None else chosen
        self._model, self._tokenizer, self._predictor = load(model, chosen, **loading)
        self._name, self._seed, self._batch_size = model, seed, int(batch_size)
        self._options = options
        self._are_chats = False
        try:  # What is wrong with the options is said before any task is read.
            list(stream_batch_generate(self._model, self._tokenizer, [], **options))
        except TypeError as e:
            raise ValueError(str(e)) from None

    def generate_until(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[str]:
        """What each request is answered, without the thinking."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1]), []).append(i)
        answers = [""] * len(requests)
        for asked, places in groups.items():
            settings = json.loads(asked)
            replies = stream_batch_generate(
                self._model,
                self._tokenizer,
                [self._encode(requests[i].args[0]) for i in places],
                predictor=self._predictor,
                batch_size=self._batch_size,
                seed=[seed_of(self._seed, i) for i in places],
                **{**_options_of(settings), **self._options},
            )
            for reply in replies:
                place = places[reply.index]
                answer = "" if reply.is_thinking else reply.answer
                answers[place] = until_stop(answer, settings.get("until"))
                request = requests[place]
                self.cache_hook.add_partial(
                    "generate_until", request.args, answers[place]
                )
        return answers

    def _encode(self, context: str) -> list[int]:
        """The prompt of a request, which is a message unless it is a chat already."""
        if self._are_chats:
            return self._tokenizer.encode(context, add_special_tokens=False)
        most = context_length(self._model, self._tokenizer)
        return encode_chat(self._tokenizer, context, most_tokens=most)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Refused: nothing is thought where likelihoods are compared."""
        raise ValueError(_refusal("loglikelihood"))

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Refused, see `loglikelihood`."""
        raise ValueError(_refusal("loglikelihood_rolling"))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A chat as the text of a prompt, where the harness makes chats itself."""
        self._are_chats = True
        return self._tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The text of the chat template."""
        return str(getattr(self._tokenizer, "chat_template", "") or "")

    @property
    def tokenizer_name(self) -> str:
        """What tells the tokenizer from others."""
        return self._name.replace("/", "__")


def _options_of(settings: dict[str, Any]) -> dict[str, Any]:
    """What a task asks of generation, in our names."""
    is_sampled = settings.get("do_sample") or settings.get("temperature")
    options: dict[str, Any] = {"temp": settings.get("temperature", 1.0)}
    options = options if is_sampled else {"temp": 0.0}
    for theirs, ours in (
        ("top_p", "top_p"),
        ("top_k", "top_k"),
        ("min_p", "min_p"),
        ("max_gen_toks", "max_answer_tokens"),
    ):
        if settings.get(theirs) is not None:
            options[ours] = settings[theirs]
    return options


def _refusal(kind: str) -> str:
    return (
        f"A task asks for {kind}, in which nothing is thought and no budget has a "
        "part: choose a task of the kind generate_until, or use `mlx_lm.evaluate`."
    )


def main() -> None:
    """The harness's command, with the model mlx-budget."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except ValueError as e:
        sys.exit(f"Error: {e}")


if __name__ == "__main__":
    main()
