"""Traces: what a model says to many prompts, in a file that survives its writer."""

import fcntl
import json
import resource
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from chats import read
from mlx_budget import stream_batch_generate, stream_generate
from mlx_budget.engine.prompts import encode_chat
from mlx_budget.engine.settings import Sampling
from mlx_budget.engine.thinking import ThinkingMarkers
from mlx_budget.train.traces import TraceOptions
from traced import PROMPTS, records_of, write


@pytest.fixture(scope="module")
def greedy(loaded, tmp_path_factory) -> bytes:
    """What is written in one go, without a stop."""
    file = tmp_path_factory.mktemp("greedy") / "traces.jsonl"
    write(loaded, file)
    return file.read_bytes()


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "traces.jsonl"


@pytest.fixture
def stopped(output, greedy) -> Path:
    """A file in which the first two of the greedy records are."""
    output.write_bytes(b"".join(greedy.splitlines(keepends=True)[:2]))
    return output


@pytest.mark.parametrize(
    ("max_tokens", "closed", "finished"),
    [(60, {"model"}, {"stop"}), (45, {"model", None}, {"length"})],
)
def test_greedy_records_are_the_replies_that_each_prompt_gets_alone(
    loaded, output, max_tokens, closed, finished
):
    model, tokenizer, _ = loaded
    write(loaded, output, max_tokens=max_tokens)
    records = records_of(output)
    assert sorted(records) == ["0-0", "1-0", "2-0", "3-0"]
    for i, prompt in enumerate(PROMPTS):
        ids = encode_chat(tokenizer, prompt)
        *_, last = responses = list(
            stream_generate(model, tokenizer, ids, temp=0.0, max_tokens=max_tokens)
        )
        ended = last.finish_reason == "stop"
        record = records[f"{i}-0"]
        assert len(record.pop("settings")) == 12
        assert record == {
            "id": f"{i}-0",
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": "".join(r.text for r in responses)},
            ],
            "tokens": [r.token for r in responses][: -1 if ended else None],
            "thinking_tokens": last.thinking_tokens,
            "closed_by": last.closed_by,
            "finish_reason": last.finish_reason,
            "prompt_tokens": len(ids),
        }
    assert {r["closed_by"] for r in records.values()} == closed
    assert {r["finish_reason"] for r in records.values()} == finished


def test_records_are_read_as_what_the_model_met(loaded, output):
    chats = [
        [{"role": "system", "content": "Hm."}, {"role": "user", "content": PROMPTS[1]}]
    ]
    write(loaded, output, [PROMPTS[0], *chats], max_tokens=200)
    tokenizer = loaded[1]
    for record, prompt in zip(
        sorted(records_of(output).values(), key=lambda r: r["id"]),
        [PROMPTS[0], *chats],
        strict=True,
    ):
        (found,) = read(tokenizer, record, positions="all")
        whole = [*encode_chat(tokenizer, prompt), *record["tokens"]]
        assert found.tokens.tolist() == whole[: len(found.tokens)]
        # L of the first thinking token counts the closing marker.
        assert found.lengths[0] == record["thinking_tokens"] + 1


def test_records_of_thinking_only_end_with_it(loaded, output, greedy):
    write(loaded, output, thinking_only=True)
    records = records_of(output)
    replies = {r["id"]: r for r in map(json.loads, greedy.splitlines())}
    assert sorted(records) == sorted(replies)
    for name, record in records.items():
        whole = replies[name]["messages"][-1]["content"]
        thinking, marker, _ = whole.partition("</think>")
        assert record["messages"][-1]["content"] == thinking + marker
        assert record["thinking_tokens"] == replies[name]["thinking_tokens"]
        assert (record["closed_by"], record["finish_reason"]) == ("model", "closed")


def test_the_statistics_are_of_the_whole_file(loaded, stopped):
    seen = []
    stats = write(loaded, stopped, progress=seen.append)
    records = records_of(stopped).values()
    new = list(records)[2:]
    assert (stats.records, stats.total, stats.written) == (4, 4, 2)
    assert stats.closed == sum(r["closed_by"] == "model" for r in records)
    assert stats.thinking_tokens == sum(r["thinking_tokens"] for r in records)
    assert stats.mean_thinking_tokens == stats.thinking_tokens / 4
    assert stats.tokens == sum(len(r["tokens"]) for r in new)
    assert stats.tokens_per_second == stats.tokens / stats.seconds > 0
    assert [s.records for s in seen] == [2, 3, 4]
    assert {s.total for s in seen} == {4}


# Going on


@pytest.mark.parametrize("line", [0, 1, 3])
@pytest.mark.parametrize("place", [0, 1, 5, 8, 9, 200, -2, -1])
def test_a_file_cut_off_anywhere_is_completed(loaded, output, greedy, line, place):
    lines = greedy.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:line]) + lines[line][:place])
    stats = write(loaded, output)
    assert set(output.read_bytes().splitlines()) == set(greedy.splitlines())
    assert len(records_of(output)) == stats.records == 4
    # All that is missing of the line at -1 is its newline.
    assert stats.written == 4 - line - (place == -1)


def test_zeros_that_a_crash_left_are_cut_off(loaded, output, greedy):
    lines = greedy.splitlines(keepends=True)
    for rest in (b"\0" * 400, lines[3][:40] + b"\0" * 400, lines[3][:3] + b"\0" * 9):
        output.write_bytes(b"".join(lines[:3]) + rest)
        write(loaded, output)
        assert records_of(output) == {json.loads(x)["id"]: json.loads(x) for x in lines}


def test_a_complete_file_is_left_as_it_is(loaded, output, greedy):
    output.write_bytes(greedy)
    assert write(loaded, output).written == 0
    assert output.read_bytes() == greedy


def test_fewer_prompts_by_limit_leave_the_other_records(loaded, output, greedy):
    output.write_bytes(greedy)
    assert write(loaded, output, limit=1).records == 4
    assert output.read_bytes() == greedy


def test_a_limit_takes_the_first_prompts(loaded, output):
    write(loaded, output, limit=2, max_tokens=4)
    assert sorted(records_of(output)) == ["0-0", "1-0"]


def test_empty_lines_and_doubled_records_do_no_harm(loaded, output, greedy):
    first = greedy.splitlines(keepends=True)[0]
    output.write_bytes(first + b"\n" + first)
    stats = write(loaded, output)
    assert (stats.records, stats.written) == (4, 3)
    assert output.read_bytes().startswith(first + b"\n" + first + b'{"id"')


def edited(line: bytes, **changes) -> str:
    return json.dumps({**json.loads(line), **changes})


def test_other_lines_are_refused_and_kept(loaded, output, greedy):
    first = greedy.splitlines(keepends=True)[0]
    for other in (
        "no JSON\n",
        "no JSON",
        '{"prompt": "What is 14 + 7?"}',
        '{"id": "a", "messages": []}\n',
        '{"id": "0-0"}\n',
        '{"id": "0-0", "messages": [\n',
        "[1, 2]\n",
        edited(first, id="0"),
        edited(first, id=0) + "\n",
    ):
        text = first.decode() + other
        output.write_text(text)
        with pytest.raises(ValueError, match="traces.jsonl, line 2, is no record"):
            write(loaded, output)
        assert output.read_text() == text


@pytest.mark.parametrize(
    "options",
    [
        {"temp": 0.5},
        {"top_p": 0.9},
        {"min_p": 0.1},
        {"top_k": 9},
        {"max_tokens": 61},
        {"system_prompt": "Hm."},
        {"chat_template_config": {"x": 1}},
        {"ignore_chat_template": True},
        {"thinking_start": ""},
        {"thinking_end": "</b>"},
        {"model_name": "other"},
    ],
)
def test_records_made_with_other_settings_are_refused(loaded, stopped, options):
    before = stopped.read_bytes()
    with pytest.raises(ValueError, match="line 1, was made with another.*--output"):
        write(loaded, stopped, **options)
    assert stopped.read_bytes() == before


def test_what_does_not_decide_the_replies_may_change(loaded, stopped, greedy):
    write(loaded, stopped, seed=3, batch_size=1, prefill_step_size=5, top_p=1)
    assert set(stopped.read_bytes().splitlines()) == set(greedy.splitlines())


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": PROMPTS[::-1]},
        {"prompts": PROMPTS[:1]},
        {"prompt_template": "{} Think."},
        {"prompts": [[{"role": "user", "content": "What is 1 + 1?"}]] * 4},
    ],
)
def test_records_of_other_prompts_are_refused(loaded, output, greedy, change):
    output.write_bytes(greedy)
    with pytest.raises(ValueError, match="does not belong to prompt .*--output"):
        write(loaded, output, **change)
    assert output.read_bytes() == greedy


def test_a_file_in_use_is_refused(loaded, stopped):
    before = stopped.read_bytes()
    with stopped.open() as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="Another program is writing"):
            write(loaded, stopped)
    assert stopped.read_bytes() == before
    assert write(loaded, stopped).written == 2


@contextmanager
def disk_of(size: int):
    """No file can grow above a size: the system's own way to fail in mid-write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_whole_records(loaded, stopped, greedy):
    size = stopped.stat().st_size
    with disk_of(size + 100):
        with pytest.raises(ValueError, match="could not be written .* free some space"):
            write(loaded, stopped)
    assert stopped.stat().st_size == size
    assert write(loaded, stopped).written == 2
    assert set(stopped.read_bytes().splitlines()) == set(greedy.splitlines())


# Samples and prompts


def test_samples_grow_and_differ(loaded, output):
    options = {"temp": 1.0, "max_tokens": 20, "seed": 5, "prompts": PROMPTS[:2]}
    for samples in (1, 2, 3):
        before = output.read_bytes() if output.exists() else b""
        write(loaded, output, num_samples=samples, **options)
        assert output.read_bytes().startswith(before)
    records = records_of(output)
    assert sorted(records) == ["0-0", "0-1", "0-2", "1-0", "1-1", "1-2"]
    # The model is far from sure of its words, and each run was of the same two prompts,
    # so that equal replies of twenty tokens would mean equal seeds.
    assert len({tuple(r["tokens"]) for r in records.values()}) == 6


def test_seeds_repeat_a_run(loaded, tmp_path):
    options = {"temp": 1.0, "max_tokens": 20, "num_samples": 2}
    written = []
    for i, seed in enumerate((1, 1, 2)):
        file = tmp_path / f"{i}.jsonl"
        write(loaded, file, seed=seed, **options)
        written.append(file.read_bytes())
    assert written[0] == written[1] != written[2]


@pytest.mark.parametrize("there", [1, 3, 7])
def test_a_stopped_run_draws_as_if_it_never_was(loaded, tmp_path, there):
    options = {"temp": 1.0, "max_tokens": 20, "num_samples": 2, "seed": 2**64 - 1}
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    write(loaded, whole, **options)
    lines = whole.read_bytes().splitlines(keepends=True)
    stopped.write_bytes(b"".join(lines[:there]))
    write(loaded, stopped, **options, batch_size=2)
    assert records_of(stopped) == records_of(whole)


@pytest.mark.parametrize(
    "options", [{"xtc_probability": 1.0, "xtc_threshold": 0.01}, {"seed": 8}]
)
def test_other_draws_are_of_other_tokens(loaded, tmp_path, options):
    files = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
    for file, more in zip(files, ({}, options), strict=True):
        given = {"temp": 1.0, "max_tokens": 20, "seed": 7, **more}
        write(loaded, file, PROMPTS[:1], **given)
    one, other = (records_of(file)["0-0"] for file in files)
    assert one["tokens"] != other["tokens"]
    # Any seed may go on with a file; other odds may not.
    assert (one["settings"] == other["settings"]) == ("seed" in options)


def test_prompts_all_come_before_any_comes_again(loaded, output):
    write(loaded, output, num_samples=2, temp=1.0, max_tokens=3, batch_size=1)
    names = [json.loads(line)["id"] for line in output.read_text().splitlines()]
    assert names == [f"{i}-{sample}" for sample in (0, 1) for i in range(4)]


def test_a_template_holds_the_prompt_where_its_first_braces_are(loaded, output):
    chat = [{"role": "user", "content": "As it is: {}"}]
    template = r"Q: {} Answer in \boxed{}."
    prompts = ["What is {}?", chat]
    write(loaded, output, prompts, prompt_template=template, max_tokens=3)
    records = records_of(output)
    sent = [records[f"{i}-0"]["messages"][:-1] for i in (0, 1)]
    asked = r"Q: What is {}? Answer in \boxed{}."
    assert sent == [[{"role": "user", "content": asked}], chat]
    assert records["0-0"]["prompt_tokens"] == len(encode_chat(loaded[1], asked))


def test_a_system_prompt_comes_first(loaded, output):
    write(loaded, output, PROMPTS[:1], system_prompt="Hm.", max_tokens=3)
    (record,) = records_of(output).values()
    assert [m["role"] for m in record["messages"]] == ["system", "user", "assistant"]
    ids = encode_chat(loaded[1], PROMPTS[0], system_prompt="Hm.")
    assert record["prompt_tokens"] == len(ids)


def test_options_of_the_template_reach_it(loaded, output):
    config = {"chat_template": "{{ messages[0]['content'] }}<think>{{ more }}"}
    config["more"] = "So"
    write(loaded, output, PROMPTS[:1], chat_template_config=config, max_tokens=3)
    (record,) = records_of(output).values()
    prompt = loaded[1].encode(PROMPTS[0] + "<think>So", add_special_tokens=False)
    assert record["prompt_tokens"] == len(prompt)
    assert "raw_prompt" not in record


def test_options_of_the_batch_reach_it(loaded, output, monkeypatch):
    seen = []

    def stream(*prompts, **options):
        seen.append(options)
        return stream_batch_generate(*prompts, **options)

    monkeypatch.setattr("mlx_budget.train.traces.stream_batch_generate", stream)
    write(loaded, output, batch_size=2, prefill_step_size=7, max_tokens=2)
    assert (seen[0]["batch_size"], seen[0]["prefill_step_size"]) == (2, 7)


def test_a_raw_prompt_says_so(loaded, output):
    tokenizer = loaded[1]
    options = {"ignore_chat_template": True, "thinking_start": "", "max_tokens": 9}
    write(loaded, output, PROMPTS[3:], **options)
    (record,) = records_of(output).values()
    assert record["raw_prompt"] is True
    assert record["messages"][:-1] == [{"role": "user", "content": PROMPTS[3]}]
    assert record["prompt_tokens"] == len(tokenizer.encode(PROMPTS[3]))
    assert record["thinking_tokens"] == 9


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be 1 or more, not 0"),
        ({"limit": 0}, "limit must be 1 or more"),
        ({"batch_size": 0}, "batch_size must be 1 or more"),
        ({"max_tokens": 0}, "max_tokens must be 1 or more, or -1 for no limit, not 0"),
        ({"max_tokens": -2}, "not -2"),
        ({"temp": -1.0}, "temp must be finite"),
        ({"num_samples": 2}, "At temp 0 all 2 samples"),
        ({"prompt_template": "Think."}, "no {} to stand for the prompt"),
        ({"thinking_start": "x", "thinking_end": "x"}, "same marker"),
        ({"prompts": "What?"}, "put it in a list"),
        ({"prompts": ["a", " "]}, r"Prompt 1 \(the first is 0\).*is empty"),
        ({"prompts": ["\ud83d"]}, r"Prompt 0 .*half of a character"),
        ({"ignore_chat_template": True, "system_prompt": "x"}, "need a chat template"),
    ],
)
def test_bad_options_are_named(loaded, output, options, message):
    with pytest.raises(ValueError, match=message):
        write(loaded, output, **options)
    assert not output.exists() or output.read_bytes() == b""


def test_the_output_must_be_json_lines(loaded, tmp_path):
    with pytest.raises(ValueError, match=r"must be a file \*.jsonl, not .*x.json"):
        write(loaded, tmp_path / "x.json")


def test_write_traces_takes_no_budget(loaded, output):
    with pytest.raises(TypeError, match="thinking_budget"):
        write(loaded, output, thinking_budget=3)


def test_a_digest_is_that_of_files_of_before_all_of_sampling_was_an_option():
    markers = ThinkingMarkers("<a>", "</a>", (1,), (2,))
    options = TraceOptions(sampling=Sampling(temp=0.5, top_p=0.9, top_k=3))
    assert options.settings(markers) == "471c09e4ef5d"
    more = replace(options, sampling=Sampling(min_tokens_to_keep=2))
    assert more.settings(markers) != options.settings(markers)


def test_there_is_no_budget():
    with pytest.raises(TypeError, match="thinking_budget"):
        TraceOptions(thinking_budget=3)
