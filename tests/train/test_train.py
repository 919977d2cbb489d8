"""Training from chat records to a predictor folder that guides its model."""

import json
from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner

from chats import read
from counting import counting
from mlx_budget import load, stream_generate
from mlx_budget.cli import cli
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.method.encoder_predictor import EncoderPredictor
from mlx_budget.train import TrainOptions, train, validation
from mlx_budget.train.dataset import is_held_out
from mlx_budget.train.picture import NO_PICTURE
from mlx_budget.train.report import format_report
from trainings import COUNT, ONE, STEPS, curves, sum_chats, weights, write_chats

END = 424


pytestmark = pytest.mark.usefixtures("no_picture")


def cached(folder: Path) -> list[dict]:
    """What a run knows of each record."""
    file = folder / "training" / "states" / "records.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_run_makes_a_predictor_that_guides_its_model(make_options, converted):
    options = make_options()
    seen = []
    result = train(options, seen.append)
    folder = options.output
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "curves.jsonl",
        "predictor.safetensors",
        "predictor_config.json",
        "report.json",
        "training",
    }
    assert result.report == json.loads((folder / "report.json").read_text())
    assert result.report["records"] == COUNT
    assert result.notes[-1] == NO_PICTURE
    assert [p.done for p in seen if p.stage == "reading"] == [*range(1, COUNT + 1)]
    assert [p.done for p in seen if p.stage == "encoding"] == [*range(COUNT + 1)]
    assert [p.done for p in seen if p.stage == "training"] == [*range(1, STEPS + 1)]
    assert {p.total for p in seen} == {None, COUNT, STEPS}
    assert [r["step"] for r in curves(folder)] == [*range(STEPS + 1)]
    assert [r["step"] for r in curves(folder) if "val_loss" in r] == [0, 4, 8, 12]
    assert "loss on held-out positions" in (folder / "README.md").read_text()

    model, tokenizer, predictor = load(str(converted), predictor=folder)
    config = predictor.config
    assert (config.width, config.layers, config.heads) == (32, 1, 2)
    assert config.known_tokens == result.report["known_tokens"]
    ids = encode_chat(tokenizer, "What is 3 + 4?")
    encoded = []
    responses = list(
        stream_generate(
            model,
            tokenizer,
            ids,
            predictor=counting(predictor, encoded.append),
            thinking_budget=10,
        )
    )
    assert encoded and set(encoded) == {1}
    assert responses[-1].thinking_tokens <= 11
    assert responses[0].token in predictor.tokens.tolist()


def test_the_picture_is_there_where_it_can_be_drawn(whole):
    assert (whole / "report.png").read_bytes().startswith(b"\x89PNG")


def test_training_lowers_the_loss(make_options, states):
    options = make_options(
        steps=80, learning_rate=5e-3, eval_every=80, cache_dir=states
    )
    report = train(options).report
    before, *_, after = (
        r["val_loss"] for r in curves(options.output) if "val_loss" in r
    )
    assert after == pytest.approx(report["val_loss"], rel=1e-4)
    assert after < before - 0.5
    assert after < report["marginal_loss"] - 0.5


def test_the_best_weights_are_kept_or_the_last_when_asked(
    make_options, states, tmp_path, monkeypatch
):
    measure, calls = validation.Split.measure, []

    def worse_at_the_end(self, outputs):
        calls.append(1)
        found = measure(self, outputs)
        return {**found, "val_loss": found["val_loss"] + 10 * (len(calls) == 4)}

    monkeypatch.setattr(validation.Split, "measure", worse_at_the_end)
    found = {}
    for keep in ("best", "last"):
        calls.clear()
        options = make_options(
            output=tmp_path / keep, keep=keep, learning_rate=2e-3, cache_dir=states
        )
        report = train(options).report
        losses = [r["val_loss"] for r in curves(options.output) if "val_loss" in r]
        assert losses[2] == min(losses) and len(losses) == 4
        wanted = {"best": losses[2], "last": losses[3] - 10}[keep]
        assert report["val_loss"] == pytest.approx(wanted, rel=1e-4)
        found[keep] = wanted
    assert abs(found["best"] - found["last"]) > 0.01


def test_the_same_seed_gives_the_same_weights(make_options, whole, tmp_path):
    mx.random.seed(99)
    train(make_options())
    other = train(make_options(seed=1, output=tmp_path / "other"))
    ours, theirs = weights(tmp_path / "out"), weights(whole)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], atol=1e-5, err_msg=name)
    assert not np.allclose(weights(tmp_path / "other")["cls"], ours["cls"])
    assert other.report["held_out_records"] > 0


def test_a_prompt_is_on_one_side_of_the_split_with_all_that_is_made_of_it(
    make_options, tmp_path
):
    twice = write_chats(tmp_path / "twice.jsonl", [*sum_chats(10), *sum_chats(10)])
    options = make_options(data=str(twice), augment="concise", **ONE)
    report = train(options).report
    sides: dict[int, set[bool]] = {}
    records = cached(options.output)
    for record in records:
        line = int(record["name"].split("line ")[1].split()[0])
        sides.setdefault((line - 1) % 10, set()).add(record["is_validation"])
    assert len(sides) == 10 and all(len(side) == 1 for side in sides.values())
    held_out = sum(side == {True} for side in sides.values())
    assert 0 < held_out < 10
    assert (report["records"], report["held_out_records"]) == (40, 4 * held_out)
    assert sum(r["name"].endswith("(concise)") for r in records) == 20


def test_a_split_depends_on_prompt_and_seed_alone():
    groups = [f"group {i}" for i in range(1000)]
    held_out = [g for g in groups if is_held_out(g, 0, 0.2)]
    assert 140 < len(held_out) < 260  # 200 expected, standard deviation 13
    assert held_out != [g for g in groups if is_held_out(g, 1, 0.2)]
    assert all(is_held_out(g, 0, 0.3) for g in held_out)


def test_records_that_cannot_be_used_are_named(make_options, sums, tmp_path):
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(sums.read_text() + '{"messages": 3}\nnot JSON\n')
    result = train(make_options(data=str(mixed), **ONE))
    assert result.report["skipped_records"] == 2
    assert result.notes[:2] == [
        "1 record skipped, messages without role and content as texts: mixed.jsonl, "
        "line 25",
        "1 record skipped, not JSON: mixed.jsonl, line 26",
    ]
    with pytest.raises(ValueError, match="mixed.jsonl, line 25 cannot be trained on"):
        train(make_options(data=str(mixed), strict=True, output=tmp_path / "strict"))


def test_too_few_records_say_what_is_missing(make_options, tmp_path):
    few = write_chats(tmp_path / "few.jsonl", sum_chats(1))
    with pytest.raises(ValueError, match=r"is left to \w+ on \(1 usable record\(s\)\)"):
        train(make_options(data=str(few)))
    few.write_text("{}\n")
    with pytest.raises(ValueError, match=r"\(1 record skipped, no messages: few"):
        train(make_options(data=str(few), output=tmp_path / "other"))


def test_tokens_that_nothing_was_learned_of_are_counted(
    make_options, states, loaded, tmp_path
):
    chats = sum_chats()
    groups = [record.group for record in read(loaded[1], *chats)]
    held_out = [i for i, g in enumerate(groups) if is_held_out(g, 0, 0.3)]
    for i in held_out[:2]:
        reply = chats[i]["messages"][1]
        reply["content"] = reply["content"].replace("</think>", "zebra\n</think>")
    data = write_chats(tmp_path / "zebras.jsonl", chats)
    plain = train(
        make_options(output=tmp_path / "plain", cache_dir=states, **ONE)
    ).report
    report = train(make_options(data=str(data), **ONE)).report
    assert (plain["unseen_positions"], report["unseen_positions"]) == (0, 2)
    assert report["positions"] == plain["positions"]


def test_held_out_records_of_other_tokens_alone_are_not_enough(
    make_options, loaded, tmp_path
):
    chats = sum_chats()
    for i, record in enumerate(read(loaded[1], *chats)):
        if is_held_out(record.group, 0, 0.3):
            chats[i]["messages"][1]["content"] = "<think>zebra</think>"
    data = write_chats(tmp_path / "zebras.jsonl", chats)
    options = make_options(data=str(data))
    with pytest.raises(ValueError, match="No token of the held-out records comes next"):
        train(options)
    assert not (options.output / "training" / "states").exists()


def test_a_warmup_as_long_as_the_run_is_refused_before_any_hidden_state(make_options):
    options = make_options(steps=None, epochs=1.0, warmup=1000)
    with pytest.raises(ValueError, match="below the [0-9]+ steps of the run, not 1000"):
        train(options)
    assert not (options.output / "training" / "states").exists()


def test_thinking_that_never_closes_after_a_newline_is_told(
    make_options, states, tmp_path
):
    chats = sum_chats()
    plain = train(make_options(output=tmp_path / "plain", cache_dir=states, **ONE))
    for chat in chats:
        reply = chat["messages"][1]
        reply["content"] = reply["content"].replace(".\n</think>", ".</think>")
    data = str(write_chats(tmp_path / "chats.jsonl", chats))
    told = train(make_options(data=data, output=tmp_path / "told", **ONE))
    other = make_options(data=data, output=tmp_path / "all", **ONE, positions="all")
    line = "In no record does thinking close right after a newline"
    found = [
        any(note.startswith(line) for note in notes)
        for notes in (plain.notes, told.notes, train(other).notes)
    ]
    assert found == [False, True, False]


def test_guidance_may_favour_what_comes_often_and_the_closing_marker(
    make_options, tmp_path
):
    chats = sum_chats()
    for chat in chats[:20]:
        reply = chat["messages"][1]
        reply["content"] = reply["content"].replace(".\n</think>", ".</think>")
    data = str(write_chats(tmp_path / "chats.jsonl", chats))
    known = {}
    for least in (1, 6, 12):
        options = make_options(
            data=data, min_count=least, **ONE, output=tmp_path / str(least)
        )
        result = train(options)
        known[least] = set(load_tokens(options.output))
        records = [r for r in cached(options.output) if not r["is_validation"]]
        seen = Counter(token for record in records for token in record["tokens"])
        often = {token for token, count in seen.items() if count >= least}
        assert known[least] == often | {END}
        assert 0 < seen[END] < 6
        assert result.report["known_tokens"] == len(known[least])
    assert known[12] < known[6] < known[1]
    with pytest.raises(ValueError, match="no token comes next 999 times.*--min-count"):
        train(make_options(min_count=999))


def load_tokens(folder: Path) -> list[int]:
    return weights(folder)["tokens"].tolist()


def test_the_mass_let_through_is_the_models_own_and_little_is_a_warning(
    make_options, loaded, sums
):
    model, tokenizer, _ = loaded
    options = make_options(min_count=12, **ONE)
    result = train(options)
    known = mx.array(load_tokens(options.output))
    found = []
    for record in read(tokenizer, *map(json.loads, sums.read_text().splitlines())):
        if is_held_out(record.group, 0, 0.3):
            logits = model(mx.array(record.tokens)[None])[0]
            p = mx.softmax(logits, axis=-1)[mx.array(record.positions - 1)]
            found += p[:, known].sum(axis=-1).tolist()
    mass = result.report["mass_let_through"]
    assert mass == pytest.approx(np.mean(found), rel=1e-3)
    assert mass < 0.8
    warning = f"Guidance may favour only {mass:.0%} of the model's own probability"
    assert any(note.startswith(warning) for note in result.notes)


@pytest.mark.parametrize("positions", ["all", 3])
def test_other_positions_may_be_trained_on(make_options, positions):
    options = make_options(positions=positions, **ONE, min_count=1)
    report = train(options).report
    sizes = [len(r["tokens"]) for r in cached(options.output)]
    assert set(sizes) == {3} if positions == 3 else min(sizes) > 8
    held_out = [r for r in cached(options.output) if r["is_validation"]]
    total = sum(len(r["tokens"]) for r in held_out)
    assert report["positions"] + report["unseen_positions"] == total


def test_states_are_shared_by_the_runs_of_one_cache_dir(make_options, whole, tmp_path):
    shared = make_options(cache_dir=tmp_path / "states")
    train(shared)
    assert not (shared.output / "training" / "states").exists()
    seen = []
    again = make_options(
        cache_dir=tmp_path / "states", output=tmp_path / "again", learning_rate=1e-3
    )
    train(again, seen.append)
    assert [p.done for p in seen if p.stage == "encoding"] == [COUNT]
    assert set(weights(again.output)) == set(weights(whole))
    with pytest.raises(ValueError, match=r"other settings \((records|positions)\)"):
        train(
            make_options(
                cache_dir=tmp_path / "states", output=tmp_path / "x", positions="all"
            )
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"size": "huge"},
            "size must be one of table, linear, base, small, mini, tiny, not 'huge'",
        ),
        ({"steps": 0}, "steps must be 1 or more, not 0"),
        ({"width": 0}, "width must be 1 or more, not 0"),
        ({"heads": 3}, "heads must divide the predictor's width of 32, which 3 does"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1, not 1.0"),
        ({"epochs": 0.0}, "epochs must be above 0, not 0.0"),
        ({"epochs": float("inf")}, "epochs must be above 0, not inf"),
        ({"epochs": float("nan")}, "epochs must be above 0, not nan"),
        ({"schedule": "step"}, "schedule must be one of constant, linear, cosine"),
        ({"learning_rate": 0.0}, "learning rate must be a number above 0, not 0.0"),
        ({"warmup": STEPS}, f"below the {STEPS} steps of the run, not {STEPS}"),
        ({"phi": -1.0}, "phi of uba must be a number above 0, not -1.0"),
        ({"weight_decay": -1.0}, "weight_decay must be 0 or more, not -1.0"),
    ],
)
def test_bad_options_are_refused_at_once(make_options, changes, message):
    with pytest.raises(ValueError, match=message):
        make_options(**changes)


def test_folders_may_be_texts():
    options = TrainOptions("model", "data", "out", cache_dir="states")
    assert (options.output, options.cache_dir) == (Path("out"), Path("states"))


def test_the_command_shows_the_report(training, tmp_path):
    out = tmp_path / "out"
    command = ["train", "--size", "tiny", "--output", str(out), "--steps", "2"]
    command += ["--learning-rate", "2e-3", "--keep", "last"]
    command += ["--model", training["model"], "--data", training["data"]]
    command += ["--width", "32", "--layers", "1", "--val-fraction", "0.3"]
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert format_report(report) in done.stderr
    assert f"The predictor is in {out}." in done.stderr
    assert done.stdout == ""
    again = CliRunner().invoke(cli, command)
    assert again.exit_code == 2
    assert again.stderr.count("\n") == 1


def blind(self, hidden_states):
    """An encoding that is the same for all hidden states."""
    encoding = self.last_norm.bias + self.cls.sum()
    return mx.broadcast_to(encoding, (len(hidden_states), self.config.width))


def test_a_predictor_that_says_the_same_for_every_input_is_a_failure(
    make_options, monkeypatch
):
    monkeypatch.setattr(EncoderPredictor, "encode", blind)
    options = make_options(learning_rate=5e-3)
    with pytest.raises(ValueError) as e:
        train(options)
    message = str(e.value)
    assert message.startswith(
        f"After {STEPS} of {STEPS} steps the predictor says the same whatever the "
        "hidden states are:"
    )
    states = options.output / "training" / "states"
    assert f"--cache-dir {states}" in message and "\n" not in message
    assert {p.name for p in options.output.iterdir()} == {"curves.jsonl", "training"}
    assert max(r.get("response", 0) for r in curves(options.output)) < 1e-3
    # The hidden states are of use to a run that sees them.
    monkeypatch.undo()
    seen = []
    other = make_options(output=options.output.with_name("other"), cache_dir=states)
    train(other, seen.append)
    assert [p.done for p in seen if p.stage == "encoding"] == [COUNT]


def test_a_run_whose_predictor_stays_blind_is_ended_early(
    make_options, states, monkeypatch
):
    monkeypatch.setattr(EncoderPredictor, "encode", blind)
    monkeypatch.setattr(validation, "PATIENCE", 7)
    options = make_options(cache_dir=states)
    with pytest.raises(ValueError, match="After 8 of 12 steps the predictor says the"):
        train(options)
    with pytest.raises(ValueError, match="After 8 of 12 steps the predictor says the"):
        train(make_options(cache_dir=states, resume=True))
    assert not (options.output / "predictor_config.json").exists()


def test_a_run_that_finds_nothing_better_than_its_first_guess_is_a_failure(
    make_options,
    states,
):
    # So high a learning rate spoils everything at once.
    options = make_options(learning_rate=0.1, steps=2, eval_every=1, cache_dir=states)
    with pytest.raises(ValueError) as e:
        train(options)
    assert str(e.value).startswith(
        "In 2 steps the loss on held-out records never fell below that of one Gamma "
        "for each token, from which training starts. No predictor was written."
    )
    assert not (options.output / "predictor_config.json").exists()


def test_a_healthy_run_says_what_its_predictor_makes_of_its_input(make_options, states):
    options = make_options(learning_rate=5e-3, cache_dir=states)
    report = train(options).report
    responses = [r["response"] for r in curves(options.output) if "response" in r]
    assert responses[0] < 1e-6 and responses[-1] > 1e-2
    assert report["response"] in [pytest.approx(r, rel=1e-3) for r in responses]
    names = {"predictor", "prompt_tokens", "prompt_digits"}
    assert set(report["rank_correlations"]) == names
