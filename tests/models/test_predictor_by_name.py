"""A predictor by the name of a checkpoint on the Hub: what is fetched, kept and said.

The Hub is a fake one on loopback that counts what it sends.
"""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from conversions import (
    TOKENIZER,
    apart,
    deal,
    fixture_config,
    fixture_weights,
    write_folder,
)
from fake_hub import FakeHub
from mlx_budget import Predictor, load
from mlx_budget.cli import cli
from mlx_budget.files.tensors import named_tensors
from mlx_budget.models import fetching, published
from mlx_budget.models.lookup import ModelSizes
from mlx_budget.models.predictor_source import find_predictor, kept_predictors
from mlx_budget.models.published import PublishedPredictor
from mlx_budget.server import running

REFERENCE, PLAIN, OTHER = "owner/tiny-BG", "owner/tiny", "owner/other"
INDEX = "model.safetensors.index.json"
PREDICTOR_SHARD = "model-00003-of-00003.safetensors"
SMALL = {"config.json", INDEX}
QUESTION = "7 + 1"
CHAT = {
    "messages": [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "<think>8\n</think>8"},
    ]
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, converted) -> dict[str, Path]:
    """Repositories, by name; do not write into them."""
    root = tmp_path_factory.mktemp("hub")
    weights, config = fixture_weights(), fixture_config()
    base, predictor = apart(weights)
    reference = write_folder(root / "reference", config, *deal(base, 2), predictor)
    for name in TOKENIZER:  # published ones may have none
        (reference / name).unlink()
    plain = write_folder(root / "plain", config, *deal(base, 2))
    other = write_folder(root / "other", {**config, "hidden_size": 32}, *deal(base, 2))
    whole = write_folder(root / "whole", config, weights)
    single = write_folder(root / "single", config, base)
    alone = root / "alone"
    alone.mkdir()
    for file in converted.glob("predictor*"):
        shutil.copy(file, alone)
    return {
        REFERENCE: reference,
        PLAIN: plain,
        OTHER: other,
        "owner/whole-BG": whole,
        "owner/single": single,
        "owner/converted": converted,
        "owner/predictor": alone,
    }


@pytest.fixture
def hub(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("MLX_BUDGET_CACHE", str(tmp_path / "cache"))
    with FakeHub(folders) as hub:
        hub.use_here(tmp_path / "home", monkeypatch)
        yield hub


def run(*arguments: object):
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def refusal(*arguments: object) -> str:
    """The one line in which a command is refused."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.stderr
    (line,) = [x for x in result.stderr.splitlines() if not x.startswith("There is no")]
    return line


def weights_of(predictor: Predictor) -> dict[str, mx.array]:
    return named_tensors(predictor.parameters())


def same(one: Predictor, other: Predictor) -> bool:
    ours, theirs = weights_of(one), weights_of(other)
    return ours.keys() == theirs.keys() and all(
        mx.array_equal(ours[name], theirs[name]) for name in ours
    )


def files_of(folder: Path) -> set[str]:
    return {p.name for p in folder.rglob("*") if p.is_file()}


def test_only_the_shards_of_the_predictor_are_fetched_and_once(
    hub, folders, tmp_path, monkeypatch, capfd
):
    *_, predictor = load(str(folders[PLAIN]), REFERENCE)
    line = capfd.readouterr().err.splitlines()[0]
    assert line.startswith(f"The predictor of {REFERENCE} is in 1 file of 3 (0.")
    assert str(tmp_path / "cache" / "predictors" / "owner--tiny-BG") in line
    assert set(hub.sent[REFERENCE]) == {*SMALL, PREDICTOR_SHARD}
    local = find_predictor(folders[REFERENCE]).load()
    assert same(predictor, local)

    before = hub.sent[REFERENCE].total()
    shutil.rmtree(tmp_path / "home")
    *_, again = load(str(folders[PLAIN]), REFERENCE)
    assert same(again, predictor)
    assert hub.sent[REFERENCE].total() == before
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    *_, offline = load(str(folders[PLAIN]), REFERENCE)
    assert same(offline, predictor)
    assert capfd.readouterr().err == ""


def test_a_new_revision_is_fetched(hub, folders, tmp_path):
    find_predictor(REFERENCE).load()
    weights = fixture_weights()
    weights["encoder.0.bias"] += 1
    changed = write_folder(tmp_path / "changed", fixture_config(), *apart(weights))
    hub.add(REFERENCE, changed)
    found = find_predictor(REFERENCE).load()
    assert same(found, find_predictor(changed).load())
    assert len(kept_predictors()) == 2


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("owner/whole-BG", {"config.json", "model.safetensors"}),
        ("owner/converted", {"predictor.safetensors", "predictor_config.json"}),
        ("owner/predictor", {"predictor.safetensors", "predictor_config.json"}),
    ],
)
def test_other_forms_of_predictors_are_taken_too(hub, folders, name, files):
    *_, predictor = load(str(folders[PLAIN]), name)
    assert isinstance(predictor, Predictor)
    assert hub.downloaded(name) - {"config.json", INDEX} == files - {"config.json"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/nobody", "no such name on the Hub"),
        ("owner/single", "has no predictor_config.json"),
        (PLAIN, "has no predictor_config.json"),
        ("a b", "neither a local folder nor a Hub name"),
    ],
)
def test_a_name_without_a_predictor_is_one_line(hub, folders, tmp_path, name, message):
    asked = "--thinking-budget", 9, "-p", QUESTION
    line = refusal("generate", "--model", PLAIN, "--predictor", name, *asked)
    assert message in line
    assert (
        not {f for sent in hub.sent.values() for f in sent}
        - SMALL
        - {
            "model.safetensors"  # of which the header alone is read
        }
    )
    assert hub.sent[name]["model.safetensors"] < 9000
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_gated_predictor_is_one_line(hub, folders):
    hub.gate(REFERENCE)
    with pytest.raises(ValueError, match=f"{REFERENCE} is gated: accept its terms"):
        load(str(folders[PLAIN]), REFERENCE)


def test_without_a_network_it_is_one_line(hub, folders, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="the Hub cannot be reached"):
        load(str(folders[PLAIN]), REFERENCE)


def test_another_base_model_is_refused_before_weights_are_fetched(hub):
    ask = "generate", "--model", OTHER, "-p", QUESTION, "--thinking-budget", 9
    line = refusal(*ask, "--predictor", REFERENCE)
    assert f"made for another model ({REFERENCE})" in line
    assert "width 64, and this model has 32" in line
    assert set(hub.sent[OTHER]) | set(hub.sent[REFERENCE]) == SMALL


def test_a_model_that_is_not_as_its_config_says_is_measured(
    folders, converted, monkeypatch
):
    monkeypatch.setattr(fetching, "sizes_of", lambda _: ModelSizes(9, 9, 9))
    assert isinstance(load(str(converted))[2], Predictor)
    message = "width 64, and this model has 32"
    other = folders[OTHER]
    with pytest.raises(ValueError, match=message):
        load(str(other), folders[REFERENCE])


def test_an_interrupted_download_leaves_nothing_and_is_gone_on_with(
    hub, folders, tmp_path
):
    hub.cut_after(REFERENCE, PREDICTOR_SHARD, 5000, times=1, reset=True)
    with pytest.raises(ValueError, match="try again: it goes on where it ended"):
        load(str(folders[PLAIN]), REFERENCE)
    assert files_of(tmp_path / "cache") == set()
    assert isinstance(load(str(folders[PLAIN]), REFERENCE)[2], Predictor)
    size = (folders[REFERENCE] / PREDICTOR_SHARD).stat().st_size
    assert size <= hub.sent[REFERENCE][PREDICTOR_SHARD] < 1.2 * size


def test_a_damaged_conversion_is_made_anew(hub, tmp_path):
    predictor = find_predictor(REFERENCE).load()
    (file,) = (tmp_path / "cache").rglob("predictor.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    assert same(find_predictor(REFERENCE).load(), predictor)


def test_programs_that_ask_at_a_time_convert_once(hub, tmp_path, capfd):
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: find_predictor(REFERENCE), range(3)))
        predictors = list(pool.map(lambda source: source.load(), found))
    assert capfd.readouterr().err.count("is converted once") == 1
    assert same(predictors[0], predictors[2])
    assert len(kept_predictors()) == 1


@pytest.mark.parametrize("command", ["traces", "learn", "train", "estimate"])
def test_data_are_not_fetched_for_a_model_that_there_is_not(hub, tmp_path, command):
    options = ["--output", tmp_path / "out.jsonl"] if command != "estimate" else []
    data = "--data", "owner/questions/prompts.jsonl"
    line = refusal(command, "--model", "owner/nobody", *data, *options)
    assert "no such name on the Hub" in line and "owner/nobody" in line
    assert not any("datasets" in request.path for request in hub.requests)


def test_a_conversion_that_was_killed_is_made_anew(hub, folders, tmp_path):
    commit = find_predictor(REFERENCE).found.commit
    parent = tmp_path / "cache" / "predictors" / "owner--tiny-BG"
    left = parent / f".{commit}.abc.incomplete"
    left.mkdir(parents=True)
    (left / "predictor_config.json").write_text("{}")
    assert kept_predictors() == []
    find_predictor(REFERENCE).load()
    assert [p.name for p in parent.iterdir()] == [commit]


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("generate", ["-p", QUESTION, "--thinking-budget", "auto"], "there is none"),
        ("generate", ["-p", QUESTION, "--adapter-path", "no"], "no adapter folder no"),
        ("generate", ["-p", QUESTION, "--extra-eos-token", "<q>"], "no token of the"),
        ("generate", ["-p", QUESTION, "--draft-model", "a/b"], "no such name on"),
        ("generate", ["-p", QUESTION, "--draft-model", "demo"], "tokenizer of demo is"),
        (
            "generate",
            ["-p", QUESTION, "--kv-bits", 4, "--quantized-kv-start", 0],
            "cannot be quantised to 4 bits",
        ),
        (
            "generate",
            ["-p", QUESTION, "--thinking-budget", 9, "--thinking-end-token", ""],
            "--thinking-end-token",
        ),
        ("generate", ["-p", QUESTION * 9999], "The prompt is too long"),
        ("chat", ["--thinking-budget", "auto"], "there is none"),
        ("estimate", ["-p", QUESTION], "An estimate needs a predictor"),
        ("traces", ["--data", "{long}", "--output", "{out}.jsonl"], "is too long"),
        ("learn", ["--data", "{long}", "--output", "{out}"], "is too long"),
        ("train", ["--data", "{chats}", "--output", "{out}"], "no record is left"),
        (
            "evaluate",
            ["--task", "demo", "--strategies", "auto", "--output", "{out}"],
            "needs a predictor",
        ),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_fetched(
    hub, tmp_path, command, options, message
):
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": QUESTION * 9999}))
    (tmp_path / "chats.jsonl").write_text(json.dumps(CHAT))
    places = {name: tmp_path / f"{name}.jsonl" for name in ("long", "chats")}
    places["out"] = tmp_path / "out"
    options = [str(option).format(**places) for option in options]
    line = refusal(command, "--model", PLAIN, *options)
    assert message in line
    assert not [name for name in hub.sent[PLAIN] if name.endswith(".safetensors")]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thinking_budget": "auto"}, "there is none"),
        ({"draft_model": "a/b"}, "no such name on"),
        ({"predictor": "a/b"}, "no such name on"),
        ({"thinking_budget": 9, "thinking_end": ""}, "marker .* is blank"),
        ({"adapter_path": "no"}, "no adapter folder no"),
    ],
)
def test_a_server_says_it_before_as_well(hub, options, message):
    with pytest.raises(ValueError, match=message), running(PLAIN, **options):
        pass
    assert not [name for name in hub.sent[PLAIN] if name.endswith(".safetensors")]


@pytest.fixture
def fitting(monkeypatch):
    """The checkpoint is among the published ones, for the plain model."""
    entry = PublishedPredictor(REFERENCE, PLAIN, 64, 4, 448)
    monkeypatch.setattr(published, "PUBLISHED", (entry,))


def test_the_published_predictor_that_fits_is_named(hub, fitting):
    line = refusal("estimate", "--model", PLAIN, "-p", QUESTION)
    assert line.endswith(f"{REFERENCE} fits this model: --predictor {REFERENCE}.")
    assert not [name for name in hub.sent[PLAIN] if name.endswith(".safetensors")]
    ask = "generate", "--model", PLAIN, "-p", QUESTION, "-m", 12
    steered = run(*ask, "--thinking-budget", 9)
    assert steered.exit_code == 0, steered.stderr
    notes = [line for line in steered.stderr.splitlines() if "A prior guides" in line]
    assert notes == [
        "A prior guides thinking. A predictor is published that fits this model: add "
        f"--predictor {REFERENCE}."
    ]
    for free in (), ("--thinking-budget", 9, "--predictor", "none"):
        assert REFERENCE not in run(*ask, *free).stderr
    followed = run(*ask, "--thinking-budget", 9, "--predictor", REFERENCE)
    assert followed.exit_code == 0, followed.stderr
    assert "prior" not in followed.stderr


def test_a_server_names_it_and_takes_it(hub, fitting, caplog):
    caplog.set_level("INFO")
    with running(PLAIN):
        pass
    assert f"add --predictor {REFERENCE}." in caplog.text
    caplog.clear()
    with running(PLAIN, predictor=REFERENCE):
        pass
    assert "prior guides" not in caplog.text
    assert PREDICTOR_SHARD in hub.downloaded(REFERENCE)


def test_what_is_published_and_kept_is_listed_and_removed(hub, fitting):
    find_predictor(REFERENCE).load()
    table = run("predictors").stdout.splitlines()
    assert table[1].split() == [REFERENCE, PLAIN, "0.2", "GB", "0.7", "MB"]
    (row,) = json.loads(run("predictors", "--json").stdout)["predictors"]
    assert row["base_model"] == PLAIN and row["kept_bytes"] > 600_000
    assert run("predictors", "--remove", REFERENCE).exit_code == 0
    assert kept_predictors() == []
    assert "No predictor of" in refusal("predictors", "--remove", REFERENCE)


def test_what_is_no_model_is_said_of_its_first_files(hub):
    line = refusal("generate", "--model", REFERENCE, "-p", QUESTION)
    assert "not converted yet" in line and f"--predictor {REFERENCE}" in line
    assert set(hub.sent[REFERENCE]) == SMALL
    line = refusal("generate", "--model", "owner/predictor", "-p", QUESTION)
    assert "give it to --predictor" in line
    assert set(hub.sent["owner/predictor"]) == {"predictor_config.json"}


def test_a_full_disk_is_seen_before_a_download(hub, folders, monkeypatch):
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 4, 5)
    )
    line = refusal("generate", "--model", PLAIN, "-p", QUESTION)
    assert f"{PLAIN} needs " in line and "free some space" in line
    with pytest.raises(ValueError, match=f"{REFERENCE} needs .* free some space"):
        load(str(folders[PLAIN]), REFERENCE)
    assert not [f for f in hub.sent[PLAIN] if f.endswith(".safetensors")]
    assert hub.downloaded(REFERENCE) == SMALL


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (PLAIN, [], "has no predictor tensors"),
        ("owner/single", [], "has no predictor tensors"),
        ("owner/converted", [], "has been converted already"),
        (REFERENCE, [], "has no usable tokenizer"),
        (REFERENCE, ["--tokenizer", "a/b"], "no such name on the Hub"),
        (REFERENCE, ["--tokenizer", PLAIN, "--predictor-heads", 3], "3 attention"),
        (REFERENCE, ["--tokenizer", PLAIN, "-q", "--q-group-size", 96], "group"),
        (REFERENCE, ["--predictor-only", "--predictor-heads", 3], "3 attention"),
    ],
)
def test_a_conversion_that_fails_fetches_no_weights(
    hub, tmp_path, source, options, message
):
    line = refusal(
        "convert", "--hf-path", source, "--mlx-path", tmp_path / "o", *options
    )
    assert message in line
    # Of headers a few kilobytes are read.
    weights = {f: n for f, n in hub.sent[source].items() if f.endswith(".safetensors")}
    assert sum(weights.values()) < 9000
    assert not hub.downloaded(source) & set(weights)
