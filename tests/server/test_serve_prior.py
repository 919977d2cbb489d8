"""Serving a model without a predictor: a prior guides, and replies may teach it."""

import logging

from mlx_budget import demo
from mlx_budget.engine.priors import NOTICE
from served import ask, served

NAME = "default_model"


def test_a_prior_guides_and_learns(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("MLX_BUDGET_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    for file in demo.FOLDER.iterdir():
        if not file.name.startswith("predictor"):
            (folder / file.name).symlink_to(file)
    with served(model=str(folder), learn_prior=True) as client:
        reply = ask(client, model=NAME, thinking_budget=40).choices[0]
        assert 0 < reply.thinking["tokens"] <= 44
        assert not list((tmp_path / "cache").rglob("*.safetensors"))
        assert ask(client, model=NAME).choices[0].thinking["closed_by"] == "model"
        (file,) = (tmp_path / "cache").rglob("*.safetensors")
        # What was learnt guides from the next request on.
        reply = ask(client, model=NAME, thinking_budget="auto").choices[0]
        assert reply.thinking["budget"] > 5
    assert NOTICE in caplog.messages
