"""The tags with which models of AdaCtrl say how hard a question is (arXiv 2505.18822).

A reply of theirs begins with one: short behind the first, long behind the second. Other
models do not know them. Knows texts alone.
"""

EASY, HARD = "[Easy]", "[Hard]"
TAGS = (EASY, HARD)


def tag_of(reply: str, start: str = "") -> str | None:
    """The tag that a reply begins with; None without one.

    Args:
        reply (str): The whole reply, thinking included.
        start (str): The marker that opens thinking, which may come before it.
    """
    text = reply.lstrip().removeprefix(start).lstrip()
    return next((tag for tag in TAGS if text.startswith(tag)), None)


def may_be_tag(text: str) -> bool:
    """Whether a text is a tag or the beginning of one; no text is, too."""
    return any(tag.startswith(text) for tag in TAGS)
