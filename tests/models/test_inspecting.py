"""What is known of a model without its weights, and what of it is wrong."""

import json
import struct

import pytest

from chat_terminal import copy_demo
from conversions import REFERENCE
from fake_hub import FakeHub
from mlx_budget import demo
from mlx_budget.engine.settings import ModelSource, ThinkingBudget
from mlx_budget.models.facts import ModelFacts, PredictorFacts
from mlx_budget.models.inspecting import inspect_model

QWEN = "senfu/Qwen3-8B-BG"


def look(model, *, told=lambda _: None, **source) -> ModelFacts:
    return inspect_model(ModelSource(str(model), **source), ThinkingBudget(), told)


@pytest.fixture
def copy(tmp_path):
    """The built-in model in a folder of its own."""
    return copy_demo(tmp_path / "copy")


@pytest.fixture
def plain(copy):
    """The same without its predictor."""
    for file in copy.glob("predictor*"):
        file.unlink()
    return copy


def rewrite(folder, name: str, change) -> None:
    """Changes the text of a file of a copy, and of the copy alone."""
    text = (folder / name).read_text()
    (folder / name).unlink()
    (folder / name).write_text(change(text))


def test_the_built_in_model_is_known():
    facts = look("demo")
    assert facts.problems == []
    assert (facts.place, facts.is_here, facts.model_type) == ("built in", True, "qwen3")
    assert (facts.layers, facts.width, facts.vocab_size) == (4, 192, 640)
    assert facts.context == 2048
    assert facts.quantization == {"bits": 8, "group_size": 64, "mode": "affine"}
    weights = demo.FOLDER / "model.safetensors"
    assert facts.weight_bytes == weights.stat().st_size and facts.missing_bytes == 0
    # Keys and values of 4 layers, each of 4 heads of 48 numbers with 2 bytes.
    config = json.loads((demo.FOLDER / "config.json").read_text())
    heads, size = config["num_key_value_heads"], config["head_dim"]
    assert facts.cache_bytes == 2 * 4 * heads * size * 8192 * 2
    assert facts.markers is not None and facts.markers.are_tokens
    assert (facts.markers.start, facts.markers.end) == ("<think>", "</think>")
    assert facts.template is not None
    assert facts.template.opens_thinking
    assert facts.template.leaves_out_by == {"enable_thinking": False}
    assert facts.records_states
    assert facts.predictor is not None and facts.predictor.problem == ""
    assert facts.predictor.bytes > 1_000_000


def test_a_model_without_a_predictor_has_a_prior(plain):
    facts = look(plain)
    assert (facts.problems, facts.predictor, facts.place) == ([], None, "folder")
    assert facts.published is None


def test_a_predictor_that_is_named_is_looked_into(plain, converted):
    facts = look(plain, predictor=str(demo.FOLDER))
    assert facts.predictor is not None and facts.predictor.kind == "encoder"
    assert facts.predictor.name == str(demo.FOLDER)
    wrong = look(plain, predictor=str(converted))
    assert wrong.predictor is not None
    assert "was made for another model" in wrong.predictor.problem
    assert wrong.problems == [wrong.predictor.problem]
    assert look(plain, predictor=False).predictor is None


def test_a_model_without_markers_is_known_all_the_same(plain):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        rewrite(plain, name, lambda text: text.replace("think>", "other>"))
    facts = look(plain)
    assert (facts.problems, facts.markers, facts.template) == ([], None, None)
    named = ThinkingBudget(start="<other>", end="</other>")
    facts = inspect_model(ModelSource(str(plain)), named)
    assert facts.markers is not None and facts.markers.end == "</other>"


def test_quirks_of_a_template_are_told(plain):
    config = json.loads((plain / "tokenizer_config.json").read_text())
    template = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% if not thinking %}"
        "<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    config["chat_template"] = template
    for file in plain.glob("chat_template*"):
        file.unlink()
    rewrite(plain, "tokenizer_config.json", lambda _: json.dumps(config))
    template = look(plain).template
    assert template is not None
    assert template.lets_think_by == {"thinking": True}
    assert not template.opens_thinking
    assert template.drops_earlier_thinking is False
    assert template.takes_system_prompt


def test_a_model_without_a_template_cannot_chat(plain):
    for file in plain.glob("chat_template*"):
        file.unlink()

    def without(text: str) -> str:
        return json.dumps({**json.loads(text), "chat_template": None})

    rewrite(plain, "tokenizer_config.json", without)
    facts = look(plain)
    assert facts.markers is not None and facts.template is None


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: rewrite(f, "config.json", lambda _: "{"), "config.json"),
        (lambda f: rewrite(f, "config.json", lambda _: "{}"), "names no model_type"),
        (
            lambda f: rewrite(f, "config.json", lambda t: t.replace("qwen3", "qwen99")),
            "is no model that mlx-lm can load",
        ),
        (
            lambda f: rewrite(
                f, "config.json", lambda t: json.dumps({"model_type": "qwen3"})
            ),
            "describes no model of its type",
        ),
        (lambda f: (f / "model.safetensors").unlink(), "it has no model*.safetensors"),
        (lambda f: (f / "tokenizer.json").unlink(), "cannot be loaded"),
        (
            lambda f: rewrite(
                f,
                "config.json",
                lambda t: json.dumps({**json.loads(t), "model_file": "model.py"}),
            ),
            "--trust-remote-code",
        ),
    ],
    ids=range(8),
)
def test_what_is_broken_is_told_in_one_line(copy, break_it, message):
    break_it(copy)
    facts = look(copy)
    assert message in " ".join(facts.problems)
    assert all("\n" not in line for line in facts.problems)


def test_what_is_not_broken_is_told_all_the_same(copy):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 40))
    facts = look(copy)
    (problem,) = facts.problems
    assert "model.safetensors" in problem
    assert facts.markers is not None and facts.template is not None
    (copy / "tokenizer.json").unlink()
    assert len(look(copy).problems) == 2


@pytest.mark.parametrize("name", ["./none", "/none/there", "a b"])
def test_a_model_that_is_not_there_is_told(name):
    facts = look(name)
    assert len(facts.problems) == 1 and facts.place in ("", "Hub")


def test_a_checkpoint_of_the_reference_is_known_as_one():
    facts = look(REFERENCE)
    assert facts.is_reference
    assert "mlx-budget convert --hf-path" in facts.problems[0]


def test_it_fits_or_not():
    facts = ModelFacts("m", weight_bytes=800, cache_bytes=50)
    assert facts.needed_bytes == 850
    facts.predictor = PredictorFacts("p", bytes=100)
    assert facts.needed_bytes == 950
    assert [facts.fits(n) for n in (2000, 1000, 900, None)] == [
        *("yes", "tight", "no"),
        None,
    ]
    assert ModelFacts("m").fits(1000) is None


def test_of_a_model_on_the_hub_no_weights_are_fetched(tmp_path, monkeypatch, plain):
    told: list[str] = []
    with FakeHub({"mlx-community/Tiny-4bit": plain}) as fake:
        fake.use_here(tmp_path / "home", monkeypatch)
        facts = look("mlx-community/Tiny-4bit", told=told.append)
        assert facts.problems == []
        weights = (plain / "model.safetensors").stat().st_size
        assert facts.weight_bytes == facts.missing_bytes == weights
        assert (facts.place, facts.is_here) == ("Hub", False)
        assert facts.markers is not None
        assert len(told) == 1 and "not for its weights" in told[0]
        sent = fake.sent["mlx-community/Tiny-4bit"]
        # Of the weights the header alone is read.
        assert sent["model.safetensors"] < 0.1 * weights
        again = look("mlx-community/Tiny-4bit", told=told.append)
        assert again.weight_bytes == weights and len(told) == 1
        missing = look("mlx-community/None-4bit")
        assert "no such name on the Hub" in missing.problems[0]


def test_the_published_predictor_that_fits_is_named(plain):
    def sized(text: str) -> str:
        sizes = {"_name_or_path": "Qwen/Qwen3-8B"}
        config = {**json.loads(text), **sizes}
        return json.dumps(config)

    rewrite(plain, "config.json", sized)
    # Its own sizes are others.
    assert look(plain).published is None
