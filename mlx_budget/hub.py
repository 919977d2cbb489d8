"""A local folder or a Hugging Face Hub name to a local folder.

Knows the Hub's client and turns its errors into one line each; nothing of what the
files mean.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

MODEL_FILES = (
    "*.json",
    "model*.safetensors",
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)
TOKENIZER_FILES = (
    "tokenizer*",
    "*.tiktoken",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.jinja",
    "*.py",
)


def is_local(name: str | Path) -> bool:
    """Whether ``name`` can only be, or is, a path on this machine."""
    text = str(name)
    looks_local = text.startswith((".", "/", "~")) or text.count("/") > 1
    return looks_local or Path(text).expanduser().exists()


def fetch(
    name: str | Path, patterns: Sequence[str], revision: str | None = None
) -> Path:
    """The local folder of a model, downloaded from the Hub if it is not a path.

    Args:
        name (str or Path): A local folder, or a Hub name such as "owner/name".
        patterns (Sequence[str]): The files to download.
        revision (str, optional): Branch, tag or commit on the Hub.

    Raises:
        ValueError: In one line, if there is no such folder or name, it may not be
            read, or the Hub cannot be reached.
    """
    if is_local(name):
        path = Path(name).expanduser()
        if not path.exists():
            raise ValueError(f"There is no folder {path}. Check the path.")
        if not path.is_dir():
            raise ValueError(f"{path} is a file; name the folder that holds the model.")
        if revision is not None:
            raise ValueError(
                f"--revision is for names on the Hub; {path} is a local folder."
            )
        return path
    with one_line_errors(str(name), revision):
        return Path(
            snapshot_download(
                str(name), revision=revision, allow_patterns=list(patterns)
            )
        )


def list_files(name: str, revision: str | None = None) -> list[str]:
    """Names of the files of a repository on the Hub; errors as in `fetch`."""
    with one_line_errors(name, revision):
        return HfApi().list_repo_files(name, revision=revision)


@contextmanager
def one_line_errors(name: str, revision: str | None = None) -> Iterator[None]:
    """Turns the errors of the Hub's client into a ValueError of one line."""
    try:
        yield
    except HFValidationError:
        raise ValueError(
            f"{name!r} is neither a local folder nor a Hub name (owner/name)."
        ) from None
    except GatedRepoError:
        raise ValueError(
            f"{name} is gated: accept its terms on the Hub and log in with "
            "`hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise ValueError(f"{name} has no revision {revision!r} on the Hub.") from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"There is no folder {name} here and no such name on the Hub (or it is "
            "private: log in with `hf auth login`)."
        ) from None
    except HfHubHTTPError as e:
        raise ValueError(f"The Hub refused {name}: {_first_line(e)}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ValueError(
            f"There is no folder {name} here, and the Hub cannot be reached to look it "
            "up. Check the path or the network."
        ) from None
    except HTTPError as e:
        raise ValueError(
            f"The connection to the Hub failed over {name} ({_first_line(e)}). Check "
            "the network and try again."
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
