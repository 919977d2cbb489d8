"""Pictures of a terminal: what was on the screen, where and when, as valid SVG."""

import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "docs"))
from terminal_pictures import Terminal, animation, frames, still

SCRIPT = r"""
import sys, time
print("first <&>   far \x1b[2mdim\x1b[0m", end="", flush=True)
sys.stdin.readline()
print("\x1b[A\x1b[2Klast", flush=True)
"""
SPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def terminal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("here")
    command = [sys.executable, "-S", "-c", SCRIPT]
    with Terminal(command, 40, 5, {}, folder) as terminal:
        terminal.until("dim")
        terminal.type("\r")
        terminal.until("last\r\n")
    # What comes at once is one frame: half a second apart, however fast the machine is.
    terminal.events = [(i / 2, piece) for i, (_, piece) in enumerate(terminal.events)]
    return terminal


def words(svg: str) -> list[tuple[str, float]]:
    """The texts of a picture and how far from the left they stand, in cells."""
    root = ElementTree.fromstring(svg)
    return [(t.text, float(t.get("x")) / 8.4) for t in root.iter(f"{SPACE}text")]


def test_a_screen_shows_each_text_in_its_place(terminal):
    first, *_, last = frames(terminal)
    shown = words(still(first, terminal, "A & B"))
    assert [text for text, _ in shown] == ["first <&>", "far", "dim"]
    assert [round(place) for _, place in shown] == [0, 12, 16]
    assert words(still(last, terminal, ""))[-1] == ("last", 0)


def test_an_animation_plays_every_screen_once_and_rests_on_the_last(terminal):
    svg = animation(frames(terminal), terminal, "played", hold=2)
    groups = [
        g for g in ElementTree.fromstring(svg).iter(f"{SPACE}g") if g.get("visibility")
    ]
    shown = {
        "".join(g.itertext()).strip(): (g.get("visibility"), g.find(f"{SPACE}animate"))
        for g in groups
    }
    assert shown["first <&>fardim"][0] == "hidden"
    state, played = shown["last"]
    assert (state, played.get("values")) == ("visible", "hidden;visible")
    (seconds,) = set(re.findall(r'dur="([\d.]+)s"', svg))
    assert 2 <= float(seconds) < 4
