"""A rank that fails at some place; the other one, or the same, generates."""

import os
import signal
import sys
import time

import mlx.core as mx

from mlx_budget import load, stream_generate
from mlx_budget.cli import cli
from mlx_budget.models import splitting
from mlx_budget.ranks.joining import join

PROMPT = list(range(5, 60))
COMMAND = ["generate", "-p", "1 + 2", "-m", "200", "--prefill-step-size", "2"]


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_at(place: str) -> None:
    """Makes this rank end, or compute something else, when it comes to a place."""
    import mlx_lm.models.qwen2 as model

    call = model.Model.__call__
    calls = []

    def counted(self, inputs, *args, **kwargs):
        calls.append(inputs.shape)
        out = call(self, inputs, *args, **kwargs)
        is_prefill = inputs.shape[1] > 1
        if place == "prefill" and is_prefill and len(calls) > 3:
            die()
        if place == "decoding" and len(calls) > 20 and not is_prefill:
            die()
        if place == "rounding" and len(calls) > 20:
            out = out[..., ::-1]
        return out

    model.Model.__call__ = counted
    if place == "load":
        splitting.load_tokenizer = die
    if place == "idle":
        # The other rank waits for its user.
        import threading

        threading.Timer(3.0, die).start()


def script(model: str) -> None:
    """Both ranks run this one, and differ in an option."""
    parts = load(model)
    rank = mx.distributed.init().rank()
    options = {"predictor": parts[2], "thinking_budget": 5 + rank}
    list(stream_generate(*parts[:2], PROMPT, **options))


def main(model: str, place: str, rank: str = "1") -> None:
    if place == "script":
        script(model)
        return
    if os.environ["MLX_RANK"] == rank:
        fail_at(place)
    sys.argv[1:] = []
    if place == "idle" and rank != os.environ["MLX_RANK"]:
        join(is_led=True)
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
        cli(["--version"])
    cli([*COMMAND, "--model", model])


if __name__ == "__main__":
    main(*sys.argv[1:])
