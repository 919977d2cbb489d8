"""A local folder or a Hugging Face Hub name to a local folder.

Knows the Hub's client and turns its errors into one line each; nothing of what the
files mean.
"""

import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    RepoFile,
    constants,
    get_session,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    build_hf_headers,
    filter_repo_objects,
    hf_raise_for_status,
    tqdm,
    validate_repo_id,
)

WEIGHT_FILES = ("model*.safetensors",)
SMALL_FILES = (
    "*.json",
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)
MODEL_FILES = (*SMALL_FILES, *WEIGHT_FILES)
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
    return looks_local or os.path.exists(text)


def model_name(model: str, adapter_path: str | None, revision: str | None) -> str:
    """What tells a model from others: the same however a local folder is spelt."""
    names = [model, adapter_path, revision]
    for i, name in enumerate(names[:2]):
        if name is not None and is_local(name):
            names[i] = os.path.realpath(os.path.expanduser(name))
    return " ".join(name for name in names if name)


class _Silent(tqdm):
    """A progress bar for files that are here before one could be read."""

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **{**options, "disable": True})


def fetch(
    name: str | Path,
    patterns: Sequence[str],
    revision: str | None = None,
    *,
    is_small: bool = False,
) -> Path:
    """The local folder of a model, downloaded from the Hub if it is not a path.

    Args:
        name (str or Path): A local folder, or a Hub name such as "owner/name".
        patterns (Sequence[str]): The files to download.
        revision (str, optional): Branch, tag or commit on the Hub.
        is_small (bool): Whether the files are too small for a progress bar.

    Raises:
        ValueError: In one line, if there is no such folder or name, it may not be
            read, or the Hub cannot be reached.
    """
    if is_local(name):
        path = Path(os.path.expanduser(name))
        if not path.exists():
            raise ValueError(f"There is no folder {name}. Check the path.")
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
                str(name),
                revision=revision,
                allow_patterns=list(patterns),
                tqdm_class=_Silent if is_small else None,
            )
        )


def list_files(name: str, revision: str | None = None) -> list[str]:
    """Names of the files of a repository on the Hub; errors as in `fetch`."""
    with _asked(name, revision):
        return HfApi().list_repo_files(name, revision=revision)


def commit_of(name: str, revision: str | None = None) -> str:
    """The commit that a revision of a repository is at; errors as in `fetch`."""
    with _asked(name, revision):
        return str(HfApi().model_info(name, revision=revision).sha)


def list_sizes(name: str, revision: str | None = None) -> dict[str, int]:
    """Bytes of the files of a repository on the Hub; errors as in `fetch`."""
    with _asked(name, revision):
        tree = HfApi().list_repo_tree(name, recursive=True, revision=revision)
        return {f.path: f.size for f in tree if isinstance(f, RepoFile)}


def matching(sizes: dict[str, int], patterns: Sequence[str]) -> dict[str, int]:
    """Those of some files that `fetch` would download for these patterns."""
    names = filter_repo_objects(sizes, allow_patterns=list(patterns))
    return {name: sizes[name] for name in names}


def check_space(name: str, nbytes: int) -> None:
    """Checks that so many bytes of a repository fit into the Hub's cache.

    What is there of a download that was interrupted is gone on with. Nothing is asked
    of the disk if nothing is needed.

    Raises:
        ValueError: If they do not.
    """
    if nbytes <= 0:
        return
    cache = Path(constants.HF_HUB_CACHE)
    begun = (cache / f"models--{name.replace('/', '--')}" / "blobs").glob(
        "*.incomplete"
    )
    needed = nbytes - sum(file.stat().st_blocks * 512 for file in begun)
    there = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise ValueError(
            f"{name} needs {in_gb(needed)} more on the disk of {cache}, where "
            f"{in_gb(free)} are free: free some space, or set HF_HOME to a folder on "
            "another disk."
        )


def in_gb(nbytes: float) -> str:
    """A number of bytes as people read it, such as "4.3 GB"."""
    return f"{nbytes / 1e9:,.1f} GB" if nbytes >= 1e8 else f"{nbytes / 1e6:,.1f} MB"


def read_bytes(name: str, file: str, revision: str, start: int, stop: int) -> bytes:
    """Bytes of a file on the Hub, without the rest; errors as in `fetch`."""
    url = hf_hub_url(name, file, revision=revision, endpoint=constants.ENDPOINT)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}"}
    found = b""
    with (
        _asked(name, revision),
        get_session().stream("GET", url, headers=headers) as response,
    ):
        hf_raise_for_status(response)
        # One that knows no ranges sends all.
        skipped = 0 if response.status_code == 206 else start
        for piece in response.iter_bytes():
            found += piece
            if len(found) >= skipped + stop - start:
                break
    return found[skipped : skipped + stop - start]


def at_hand(name: str, revision: str | None = None) -> Path | None:
    """The folder of what is here of a model already; nothing is asked for.

    Args:
        name (str): A local folder or a Hub name.
        revision (str, optional): Branch, tag or commit on the Hub.
    """
    if is_local(name):
        folder = Path(os.path.expanduser(name))
        return folder if folder.is_dir() else None
    try:
        file = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(file).parent if isinstance(file, str) else None


def list_dataset_files(name: str) -> list[str]:
    """Names of the files of a dataset on the Hub; errors as in `fetch`."""
    with one_line_errors(name, what="file"):
        return HfApi().list_repo_files(name, repo_type="dataset")


def fetch_dataset_file(name: str, file: str) -> Path:
    """The local copy of one file of a dataset on the Hub; errors as in `fetch`."""
    with one_line_errors(f"{name}/{file}", what="file"):
        return Path(hf_hub_download(name, file, repo_type="dataset"))


def check_name(name: str) -> None:
    """Raises a ValueError if ``name`` cannot be the name of a repository."""
    with one_line_errors(name):
        validate_repo_id(name)


def check_login(name: str) -> None:
    """Checks that the Hub knows the user, who is to change a repository later.

    Raises:
        ValueError: If it does not.
    """
    with _asked(name, None):
        try:
            HfApi().whoami()
        except HfHubHTTPError as e:
            if e.response is not None and e.response.status_code in (401, 403):
                raise


def create(name: str) -> str:
    """Makes a repository on the Hub, unless it is there; errors as in `fetch`.

    Returns:
        str: Its full name, "owner/name".
    """
    with one_line_errors(name):
        return HfApi().create_repo(name, exist_ok=True).repo_id


def upload(folder: Path, name: str) -> None:
    """Uploads the files of a folder to a repository; errors as in `fetch`."""
    with one_line_errors(name):
        HfApi().upload_folder(folder_path=folder, repo_id=name)


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Silences a library's warnings: what matters comes as an error, too."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _asked(name: str, revision: str | None) -> Iterator[None]:
    """`one_line_errors` of what is no download, whose client tells of no network."""
    with one_line_errors(name, revision):
        try:
            yield
        except Exception as e:
            # The client's own client has changed its name more than once.
            kinds = {kind.__name__ for kind in type(e).__mro__}
            if kinds & {"ConnectError", "TimeoutException", "ProxyError"}:
                raise LocalEntryNotFoundError(str(e)) from e
            raise


@contextmanager
def one_line_errors(
    name: str, revision: str | None = None, what: str = "folder"
) -> Iterator[None]:
    """Turns the errors of the Hub's client into a ValueError of one line.

    Args:
        name: What was asked for.
        revision: Branch, tag or commit on the Hub.
        what: What ``name`` would be if it were a local path.
    """
    try:
        with quiet("huggingface_hub"):
            yield
    except HFValidationError:
        raise ValueError(
            f"{name!r} is neither a local {what} nor a Hub name (owner/name)."
        ) from None
    except LocalTokenNotFoundError:
        raise ValueError(
            f"The Hub wants to know who you are before it changes {name}: log in with "
            "`hf auth login`."
        ) from None
    except GatedRepoError:
        raise ValueError(
            f"{name} is gated: accept its terms on the Hub and log in with "
            "`hf auth login`."
        ) from None
    except RevisionNotFoundError:
        raise ValueError(
            f"{name} has no revision {revision!r} on the Hub. Check --revision."
        ) from None
    except RepositoryNotFoundError:
        raise ValueError(
            f"There is no {what} {name} here and no such name on the Hub (or it is "
            "private: log in with `hf auth login`)."
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise ValueError(
            f"There is no {what} {name} here, and the Hub cannot be reached to look it "
            "up. Check the path or the network."
        ) from None
    except RemoteEntryNotFoundError:
        raise ValueError(
            f"There is no file {name} on the Hub. Check the path behind owner/name."
        ) from None
    except HfHubHTTPError as e:
        raise ValueError(
            f"The Hub refused {name} ({_first_line(e)}). Check the name, and log in "
            "with `hf auth login`."
        ) from None
    except Exception as e:  # the client's libraries raise whatever they like
        raise ValueError(
            f"The transfer of {name} from or to the Hub failed ({_first_line(e)}). "
            "Check the network and the disk, and try again: it goes on where it ended."
        ) from e


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [repr(error)]
    return lines[0].rstrip(". ")
