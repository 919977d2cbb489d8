"""Time to the first token of a long prompt, with guidance on and off.

Guidance looks at the last position of the prompt only, so it costs one predictor
evaluation however long the prompt is.
"""

import time
from pathlib import Path

import click
import mlx_lm

import timing
import workload
from mlx_budget import stream_generate


@click.command()
@click.option("--model", required=True, type=click.Path(path_type=Path))
@click.option("--prompt-tokens", default=2000, show_default=True)
@click.option("--size", default="base", show_default=True, help="Predictor size.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--output", type=click.Path(path_type=Path), help="JSON file to write.")
def main(
    model: Path, prompt_tokens: int, size: str, rounds: int, output: Path | None
) -> None:
    """Compares prefill with guidance on and off."""
    loaded, tokenizer = workload.load_smollm2(model)
    args = loaded.args
    predictor = workload.make_predictor(
        args.hidden_size, args.num_hidden_layers, args.vocab_size, size
    )
    sentence = tokenizer.encode(" Seventeen and twenty-six make forty-three.")
    prompt = (sentence * (prompt_tokens // len(sentence) + 1))[:prompt_tokens]

    def first_token(responses) -> float:
        start = time.perf_counter()
        next(iter(responses))
        taken = time.perf_counter() - start
        responses.close()
        return taken

    def plain() -> float:
        return first_token(
            mlx_lm.stream_generate(loaded, tokenizer, prompt, max_tokens=1)
        )

    def guided() -> float:
        return first_token(
            stream_generate(
                loaded,
                tokenizer,
                prompt,
                predictor=predictor,
                thinking_budget=500,
                max_tokens=1,
                **workload.MARKERS,
            )
        )

    seconds = timing.run_rounds({"plain": plain, "guided": guided}, rounds)
    row = {
        "prompt tokens": prompt_tokens,
        "predictor": size,
        "plain, s": timing.median(seconds["plain"]),
        "guided, s": timing.median(seconds["guided"]),
        "guided : plain": timing.ratio(seconds, "guided", "plain"),
    }
    timing.report("Time to the first token", [row], output)


if __name__ == "__main__":
    main()
