"""The commands `generate` and `estimate`, as a user runs them."""

import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from click.testing import CliRunner
from mlx_lm.models.cache import make_prompt_cache, save_prompt_cache

import mlx_budget
from mlx_budget.cli import cli
from mlx_budget.engine.prompts import encode_chat

ROOT = Path(__file__).parents[2]
QUESTION = "What is 14 + 7?"


def run(*args, **kwargs):
    return CliRunner().invoke(cli, [str(a) for a in args], **kwargs)


def generate(model, *args, **kwargs):
    return run("generate", "--model", model, "-p", QUESTION, *args, **kwargs)


def fails(result) -> str:
    """The one line of a command that ended on bad input."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


def test_generate_prints_the_reply_and_its_statistics(converted, loaded):
    result = generate(converted, "--thinking-budget", 20)
    model, tokenizer, predictor = loaded
    ids = encode_chat(tokenizer, QUESTION)
    text = mlx_budget.generate(
        model, tokenizer, ids, predictor=predictor, thinking_budget=20
    )
    assert result.exit_code == 0
    assert result.stdout == text + "\n"
    assert "Prompt: 26 tokens, " in result.stderr
    assert result.stderr.splitlines()[-1].startswith("Thinking: ")
    assert " of 20 tokens, closed by the " in result.stderr


def test_the_alias_of_the_budget(converted):
    one = generate(converted, "--thinking-budget", 20)
    assert generate(converted, "--reasoning-budget", 20).stdout == one.stdout


def test_hidden_thinking(converted):
    whole = generate(converted, "--thinking-budget", 0, "--verbose", "false")
    hidden = generate(
        converted, "--thinking-budget", 0, "--hide-thinking", "--verbose", "false"
    )
    assert whole.stdout.startswith("</think>")
    # This model reasons on behind the close, and closes again.
    assert whole.stdout.count("</think>") == 2
    assert hidden.stdout == whole.stdout.replace("</think>", "").lstrip()
    assert hidden.stderr == ""


def test_json_holds_the_reply_in_parts(converted):
    result = generate(
        converted,
        "--thinking-budget",
        12,
        "--predictor",
        "none",
        "--thinking-budget-message",
        " So be it.",
        "--json",
    )
    reply = json.loads(result.stdout)
    assert reply["closed_by"] == "budget"
    assert reply["thinking_budget"] == 12
    assert 12 <= reply["thinking_tokens"] <= 13
    # This model reasons on behind the close, and closes again: that is thinking too.
    lines = reply["thinking"].splitlines()
    assert any(line.endswith("So be it.") for line in lines)
    assert reply["after_close_tokens"] > 0
    assert reply["answer"] and "</think>" not in reply["answer"][:8]
    assert reply["finish_reason"] in ("stop", "length")
    assert reply["prompt_tokens"] == 26
    assert reply["model"] == str(converted)


def test_json_keeps_the_order_of_the_text(converted):
    options = ["--thinking-budget", 20, "-m", 60]
    shown = generate(converted, *options).stdout
    reply = json.loads(generate(converted, *options, "--json").stdout)
    assert reply["text"] + "\n" == shown
    # This reply repeats the prompt's opening marker, and mentions it in its answer.
    assert shown.count("<think>") == 2
    assert "think>" not in reply["thinking"]
    assert "let me<think>, 27" in reply["answer"]
    assert "</think>" not in reply["answer"]


def test_backslashes_stay_as_they_are(converted):
    result = run("estimate", "--model", converted, "-p", r"$\times\neq$", "--json")
    (row,) = json.loads(result.stdout)["estimates"]
    assert row["prompt"] == r"$\times\neq$"


def test_the_prompt_may_come_from_standard_input(converted):
    piped = run("generate", "--model", converted, "-p", "-", input=QUESTION)
    assert piped.stdout == generate(converted).stdout


def test_an_invalid_prompt_is_refused(converted):
    result = run("generate", "--model", converted, "-p", "-", input=b"\xff\xfe")
    assert "not UTF-8 text" in fails(result)


def test_options_reach_the_model(converted):
    plain = generate(converted, "--thinking-budget", 40).stdout
    for option in (
        ["--system-prompt", "Be terse."],
        ["--ignore-chat-template"],
        ["--prefill-response", "First"],
        ["--max-tokens", 3],
        ["--no-hard-stop"],
        ["--temp", 2.0, "--seed", 1],
    ):
        result = generate(converted, "--thinking-budget", 40, *option)
        assert result.exit_code == 0, result.stderr
        assert result.stdout != plain


def test_thinking_is_cut_as_m1_is_and_a_tag_is_told():
    m1 = ["--thinking-start-token", "<|im_start|>think"]
    m1 += ["--thinking-end-token", "<|im_start|>answer", "--predictor", "none"]
    m1 += ["--reply-prefix", "<|im_start|>think\n[Hard]", "-m", 60, "--json"]
    m1 += ["--thinking-budget", 20, "--hard-stop", 1]
    m1 += ["--thinking-budget-message", "auto"]
    reply = json.loads(generate("demo", *m1).stdout)
    assert reply["text"].startswith("<|im_start|>think\n[Hard]")
    assert "\n<|im_start|>answer\nFinal Answer:" in reply["text"]
    assert reply["answer"].startswith("Final Answer:")
    assert (reply["thinking_tokens"], reply["closed_by"]) == (20, "budget")
    assert reply["tag"] == "[Hard]"
    drafted = generate("demo", "--reply-prefix", "So", "--draft-model", "demo")
    assert "cannot be combined with --reply-prefix" in fails(drafted)


def test_seeds_repeat_a_run(converted):
    options = ["--temp", 1.0, "--top-p", 0.9, "--seed", 7, "--thinking-budget", 30]
    assert generate(converted, *options).stdout == generate(converted, *options).stdout


@pytest.mark.parametrize("seed", [2, 2**64 - 1])
def test_a_seed_is_that_of_python(converted, loaded, seed):
    model, tokenizer, predictor = loaded
    options = {"temp": 1.0, "thinking_budget": 20, "max_tokens": 40, "seed": seed}
    ids = encode_chat(tokenizer, QUESTION)
    text = mlx_budget.generate(model, tokenizer, ids, predictor=predictor, **options)
    args = [f"--{k.replace('_', '-')}={v}" for k, v in options.items()]
    assert generate(converted, *args).stdout == text + "\n"


def test_a_saved_prompt_cache_changes_nothing(converted, loaded, tmp_path):
    model, tokenizer, _ = loaded
    file = tmp_path / "cache.safetensors"
    whole = encode_chat(tokenizer, QUESTION)
    suffix = encode_chat(tokenizer, QUESTION, suffix_only=True)
    cache = make_prompt_cache(model)
    model(mx.array([whole[: -len(suffix)]]), cache=cache)
    metadata = {"model": str(converted), "tokenizer_config": "{}"}
    save_prompt_cache(str(file), cache, metadata)
    options = ["--thinking-budget", 30, "--max-tokens", 50]
    cached = generate(converted, "--prompt-cache-file", file, *options)
    assert cached.stdout == generate(converted, *options).stdout
    other = generate("./other", "--prompt-cache-file", file)
    assert "was made with the model" in fails(other)
    file.write_bytes(b"no cache")
    assert "is not a prompt cache" in fails(
        generate(converted, "--prompt-cache-file", file)
    )


def test_custom_markers(converted):
    result = generate(
        converted,
        "--thinking-budget",
        8,
        "--hard-stop",
        1,
        "--thinking-start-token",
        "",
        "--thinking-end-token",
        "So 21.",
        "--json",
    )
    reply = json.loads(result.stdout)
    assert reply["thinking_tokens"] == 8
    assert "So 21." in reply["text"]
    assert "So 21." not in reply["thinking"]


def test_a_draft_model_works_without_a_budget_only(converted):
    plain = generate(converted, "--max-tokens", 20).stdout
    drafted = generate(converted, "--max-tokens", 20, "--draft-model", converted)
    assert drafted.stdout == plain
    line = fails(
        generate(converted, "--draft-model", converted, "--thinking-budget", 5)
    )
    assert "Speculative decoding" in line


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--thinking-budget", "-2"], "not -2"),
        (["--thinking-budget", "abc"], "not 'abc'"),
        (["--thinking-budget", "9", "--hard-stop", "0.5"], "--hard-stop must be"),
        (["--hard-stop", "2", "--no-hard-stop"], "not both"),
        (["--max-tokens", "0"], "--max-tokens must be 1 or more"),
        (["--temp", "-1"], "temp must be"),
        (["--chat-template-config", "{"], "--chat-template-config is not valid JSON"),
        (["--chat-template-config", "[]"], "must be a JSON object"),
        (["-p", "  "], "The prompt is empty"),
        (["--model", "./nope"], "There is no folder ./nope"),
        (["--predictor", "./nope"], "There is no folder ./nope"),
        (["--thinking-end-token", "x", "--thinking-start-token", "x"], "same marker"),
        (["--nonsense"], "No such option"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--top-k", "-3"], "-3 is not in the range"),
        (["--top-p", "7"], "7.0 is not in the range"),
        (["--max-kv-size", "0"], "0 is not in the range"),
        (["--temp", "1", "--top-k", "5000"], "has to be an integer in the"),
        (["--thinking-budget", "9" * 30], "must be at most"),
        (["--kv-bits", "8", "--max-kv-size", "9"], "cannot quantise a KV cache of"),
        (["--adapter-path", "."], "There is no adapter folder"),
        (["--extra-eos-token", "zzz"], "'zzz' is no token of the model"),
    ],
)
def test_bad_options_end_in_one_line(converted, args, message):
    assert message in fails(generate(converted, *args))


def test_a_model_without_markers_says_what_to_do(converted, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in converted.iterdir():
        text = file.read_bytes()
        if file.name.startswith("tokenizer"):
            text = text.replace(b"think>", b"other>")
        (folder / file.name).write_bytes(text)
    line = fails(generate(folder, "--thinking-budget", 5))
    assert "no thinking markers" in line and "--thinking-end-token" in line
    assert generate(folder).exit_code == 0


def test_a_budget_without_a_predictor_is_guided_by_a_prior_and_says_so(
    converted, tmp_path
):
    folder = tmp_path / "plain"
    folder.mkdir()
    for file in converted.iterdir():
        if not file.name.startswith("predictor"):
            (folder / file.name).symlink_to(file)
    assert "auto is a share" in fails(generate(folder, "--thinking-budget", "auto"))
    guided = generate(folder, "--thinking-budget", 5)
    notices = [line for line in guided.stderr.splitlines() if "a prior guides" in line]
    assert len(notices) == 1 and "--predictor none" in notices[0]
    ended = generate(folder, "--thinking-budget", 5, "--predictor", "none")
    assert "Thinking: 5 of 5 tokens, closed by the budget" in ended.stderr
    assert "prior" not in ended.stderr
    joined = generate(folder, "--thinking-budget", 5, "--predictor", converted)
    assert joined.stdout == generate(converted, "--thinking-budget", 5).stdout


def test_estimate_prints_a_table(converted, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"question": "What is 14 + 7?"}\n{"prompt": "What is 35 + 27?"}\n')
    result = run("estimate", "--model", converted, "--data", file)
    assert result.exit_code == 0
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["mode", "10", "%", "median", "90", "%", "prompt"]
    assert first.endswith(QUESTION) and second.endswith("What is 35 + 27?")
    _, low, median, high = map(int, first.split()[:4])
    assert low < median < high


def test_estimate_prints_json(converted, loaded):
    result = run("estimate", "--model", converted, "-p", QUESTION, "--json")
    (row,) = json.loads(result.stdout)["estimates"]
    ids = encode_chat(loaded[1], QUESTION)
    found = mlx_budget.estimate(*loaded, ids)
    assert row["prompt"] == QUESTION
    assert row["median"] == pytest.approx(found.median)


def test_estimate_refuses_bad_input(converted, tmp_path):
    assert "one of --prompt and --data" in fails(run("estimate", "--model", converted))
    line = fails(run("estimate", "--model", converted, "--data", tmp_path / "nope"))
    assert "There is no file" in line
    line = fails(
        run("estimate", "--model", converted, "-p", "x", "--predictor", "none")
    )
    assert "needs a predictor" in line


def test_the_version_and_help_are_there():
    assert mlx_budget.__version__ in run("--version").stdout
    for command in ("convert", "generate", "estimate"):
        assert run(command, "--help").exit_code == 0


@pytest.mark.parametrize("script", ["convert.py", "generate.py"])
def test_the_scripts_of_a_checkout_do_the_same(script):
    command = [sys.executable, "-m", "mlx_budget", script.removesuffix(".py")]
    helps = [
        subprocess.run([*start, "--help"], capture_output=True, text=True).stdout
        for start in (command, [sys.executable, ROOT / script])
    ]
    ours, theirs = (text.partition("\n")[2] for text in helps)
    assert "Options:" in ours
    assert ours == theirs


def read_terminal(fd: int, until: bytes) -> bytes:
    """What a program writes to a terminal, until some bytes or its end."""
    seen = b""
    while until not in seen:
        ready, _, _ = select.select([fd], [], [], 60)
        try:
            piece = os.read(fd, 4096) if ready else b""
        except OSError:
            piece = b""
        if not piece:
            break
        seen += piece
    return seen


def in_terminal(converted, *args) -> tuple[subprocess.Popen, int]:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mlx_budget", "generate", "--model", converted]
    process = subprocess.Popen(
        [*map(str, command), "-p", QUESTION, *args],
        stdout=theirs,
        stderr=theirs,
        # A shell's background jobs, and what they start, ignore interrupts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    return process, ours


def test_a_terminal_shows_the_meter(converted):
    process, fd = in_terminal(converted, "--thinking-budget", "40")
    seen = read_terminal(fd, b"closed by the")
    process.wait()
    os.close(fd)
    assert b" of 40 tokens [" in seen
    assert b"\x1b[2m" in seen
    assert process.returncode == 0


def test_an_interrupt_ends_with_statistics_and_no_traceback(converted, tmp_path):
    # A reply that neither ends nor closes its thinking leaves time to interrupt it.
    endless = tmp_path / "endless"
    shutil.copytree(converted, endless)
    for name in ("config.json", "tokenizer_config.json", "special_tokens_map.json"):
        config = json.loads((endless / name).read_text())
        changes = {"eos_token": "<|endoftext|>", "eos_token_id": 0}
        config.update({k: v for k, v in changes.items() if k in config})
        (endless / name).write_text(json.dumps(config))
    process, fd = in_terminal(
        endless, "--thinking-budget", "90000", "--thinking-end-token", "@@@@"
    )
    seen = read_terminal(fd, b" of 90000 tokens [")
    process.send_signal(signal.SIGINT)
    seen += read_terminal(fd, b"interrupted")
    process.wait()
    os.close(fd)
    assert process.returncode == 130
    assert b"tokens, interrupted" in seen
    assert b"Traceback" not in seen


@pytest.mark.parametrize(
    "words, message",
    [
        (["--draft-model", "demo", "--max-kv-size", 30], "--draft-model .* --max-kv"),
        (["--draft-model", "demo", "--prompt-cache-file", "c"], "--prompt-cache-file"),
        (["--prompt-cache-file", "c", "--max-kv-size", 9], "--max-kv-size"),
        (["--prompt-cache-file", "c", "--system-prompt", "x"], "--system-prompt"),
    ],
)
def test_options_without_effect_beside_others_are_refused(words, message):
    result = run("generate", "-p", QUESTION, *words)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()[-1:]
    assert re.search(message, line) and "cannot be combined" in line


def test_nested_json_is_no_traceback():
    deep = '{"a":' * 3000 + "1" + "}" * 3000
    for option in ("--chat-template-config", "--json-schema"):
        result = run("generate", "-p", QUESTION, option, deep)
        assert (result.exit_code, "Traceback" in result.stderr) == (2, False)


def test_json_hides_thinking_too():
    words = ["generate", "-p", QUESTION, "--thinking-budget", 20, "--json"]
    shown = json.loads(run(*words).stdout)
    hidden = json.loads(run(*words, "--hide-thinking").stdout)
    assert "thinking" not in hidden and hidden["answer"] == shown["answer"]
    assert shown["thinking"] not in hidden["text"]


def test_closed_and_narrow_outputs_end_no_reply():
    words = [sys.executable, "-m", "mlx_budget", "generate", "-p", "x", "-m", "8"]
    words += ["--reply-prefix", "\u221a2"]
    shell = " ".join(map(shlex.quote, words))
    for command, shown in ((f"{shell} >&-", ""), (shell, "?2")):
        result = subprocess.run(
            ["sh", "-c", command],
            env={**os.environ, "PYTHONIOENCODING": "latin-1"},
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert result.returncode == 0, result.stderr
        assert shown in result.stdout
