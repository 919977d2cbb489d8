"""A real model, SmolLM2-135M-Instruct, on a real question of GSM8K."""

import json
import os
import re
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from click.testing import CliRunner

from mlx_budget import (
    Predictor,
    PredictorConfig,
    load,
    make_budget_sampler,
    stream_generate,
)
from mlx_budget.cli import cli
from mlx_budget.method.encoder_predictor import EncoderPredictor

MODEL = os.environ.get("MLX_BUDGET_SMOLLM2", "")
pytestmark = [
    pytest.mark.real_model,
    pytest.mark.skipif(
        not Path(MODEL, "config.json").exists(),
        reason="MLX_BUDGET_SMOLLM2 names no folder of benchmarks/convert_smollm2.py",
    ),
]
# GSM8K (OpenAI, MIT licence), test set, second question.
QUESTION = (
    "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts "
    "in total does it take?"
)
MARKERS = ["--thinking-start-token", "", "--thinking-end-token", "\n####"]


@pytest.fixture(scope="module")
def model():
    return load(MODEL, predictor=False)


@pytest.fixture(scope="module")
def predictor_folder(tmp_path_factory) -> Path:
    """A predictor of BERT-base size with random weights and plausible outputs."""
    mx.random.seed(0)
    predictor = EncoderPredictor(
        PredictorConfig(
            base_model="SmolLM2-135M-Instruct",
            model_width=576,
            model_layers=30,
            vocab_size=49152,
        )
    )
    # Around a concentration of 60 and a rate of 14: lengths of some tens of tokens.
    bias = mx.zeros((768,))
    bias[0] = 10.0
    predictor.layers[-1].output_norm.bias = bias
    for head, mean, spread in (
        (predictor.concentration_head, 60.0, 0.4),
        (predictor.rate_head, 14.0, 0.04),
    ):
        head.weight = mx.random.normal(head.weight.shape) * spread
        head.weight[:, 0] += mean / 10
    folder = tmp_path_factory.mktemp("predictor")
    predictor.save(folder)
    return folder


def answer(*args) -> dict:
    options = ["generate", "--model", MODEL, "-p", QUESTION, "--json", *MARKERS]
    result = CliRunner().invoke(cli, [*options, *map(str, args)])
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_budget_0_answers_at_once():
    reply = answer("--thinking-budget", 0, "--max-tokens", 30)
    assert reply["text"].startswith("\n####")
    assert (reply["thinking"], reply["thinking_tokens"]) == ("", 0)
    assert reply["closed_by"] == "budget"


def test_the_hard_stop_closes_a_real_reply():
    reply = answer("--thinking-budget", 20, "--predictor", "none", "--max-tokens", 40)
    assert 20 <= reply["thinking_tokens"] <= 22
    assert reply["closed_by"] == "budget"
    assert len(re.findall("[a-z]+", reply["thinking"])) > 8
    assert reply["text"].startswith(reply["thinking"] + "\n####")


def test_a_guided_run_is_the_same_in_the_stock_loop(model, predictor_folder):
    loaded, tokenizer, _ = model
    predictor = Predictor.load(predictor_folder)
    prompt = tokenizer.encode(QUESTION)  # a chat has twice as many tokens to read
    options = {
        "thinking_budget": 15,
        "hard_stop": 1.2,
        "thinking_start": "",
        "thinking_end": "\n####",
    }
    ours = stream_generate(
        loaded,
        tokenizer,
        prompt,
        predictor=predictor,
        max_tokens=24,
        **options,
    )
    ours = [r.token for r in ours]
    sampler = make_budget_sampler(
        loaded, tokenizer, predictor, prompt=prompt, **options
    )
    stock = mlx_lm.stream_generate(
        loaded, tokenizer, prompt, sampler=sampler, max_tokens=24
    )
    assert [r.token for r in stock] == ours
    sampler.close()
    assert len(sampler.guided_steps) >= 1
    plain = mlx_lm.stream_generate(loaded, tokenizer, prompt, max_tokens=24)
    assert any(r.token != token for r, token in zip(plain, ours, strict=False))
