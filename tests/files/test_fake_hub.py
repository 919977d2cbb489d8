"""The real Hub client, in a child process, works against the fake one.

It knows nothing about this project's own code.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request as URLRequest
from urllib.request import urlopen

import pytest

from fake_hub import FakeHub, Request

MAIN = {"config.json": b'{"from": "main"}', "a/b.txt": b"text", "w.safetensors": b"w"}
V1 = {"config.json": b'{"from": "v1"}'}
WEIGHTS = bytes(range(256)) * 8192

# Prints the value of an expression, or the name of the exception that it raised.
CLIENT = """
import sys, time
from huggingface_hub import HfApi, constants, hf_hub_download, snapshot_download
constants.DOWNLOAD_CHUNK_SIZE = 1000
time.sleep = lambda seconds: None
try:
    print(eval(sys.argv[1]))
except Exception as error:
    print(type(error).__name__)
"""


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    main = write_files(tmp_path / "main", MAIN)
    v1 = write_files(tmp_path / "v1", V1)
    with FakeHub({"owner/name": main}, {"owner/name": {"v1": v1}}) as hub:
        yield hub


def run(hub: FakeHub, home: Path, expression: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", CLIENT, expression],
        env={**os.environ, **hub.environment(home / "home"), **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


def test_patterns_choose_what_is_downloaded(hub: FakeHub, tmp_path: Path) -> None:
    call = "snapshot_download('owner/name', allow_patterns=['*.json', '*.txt'])"
    folder = Path(run(hub, tmp_path, call))
    assert hub.downloaded("owner/name") == {"config.json", "a/b.txt"}
    assert read_files(folder) == {k: MAIN[k] for k in ("config.json", "a/b.txt")}
    assert hub.requests[0] == Request("GET", "/api/models/owner/name/revision/main")


def test_a_revision_has_its_own_files(hub: FakeHub, tmp_path: Path) -> None:
    folder = run(hub, tmp_path, "snapshot_download('owner/name', revision='v1')")
    assert read_files(Path(folder)) == V1


def test_a_dataset_has_an_address_of_its_own(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("datasets/owner/name", write_files(tmp_path / "data", V1))
    listing = "HfApi().list_repo_files('owner/name', repo_type='dataset')"
    call = "hf_hub_download('owner/name', 'config.json', repo_type='dataset')"
    assert run(hub, tmp_path, listing) == "['config.json']"
    assert Path(run(hub, tmp_path, call)).read_bytes() == V1["config.json"]
    assert hub.downloaded("datasets/owner/name") == {"config.json"}
    assert hub.downloaded("owner/name") == set()
    assert len(eval(run(hub, tmp_path, listing.replace("'dataset'", "None")))) == 3


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("snapshot_download('owner/other')", "RepositoryNotFoundError"),
        ("hf_hub_download('owner/other', 'config.json')", "RepositoryNotFoundError"),
        ("snapshot_download('owner/name', revision='v2')", "RevisionNotFoundError"),
        ("hf_hub_download('owner/name', 'no.json')", "RemoteEntryNotFoundError"),
        ("HfApi().create_repo('owner/name')", "HfHubHTTPError"),
    ],
)
def test_a_refusal_is_the_exception_of_the_real_hub(
    hub: FakeHub, tmp_path: Path, call: str, error: str
) -> None:
    assert run(hub, tmp_path, call) == error
    assert hub.downloaded("owner/name") == set()


def test_an_upload_arrives_byte_for_byte(hub: FakeHub, tmp_path: Path) -> None:
    files = {"README.md": b"# New\n", "a/c.json": b"{}", "model.safetensors": WEIGHTS}
    folder = write_files(tmp_path / "new", files)
    create = "HfApi().create_repo('me/new', exist_ok=True)"
    assert run(hub, tmp_path, create) == f"{hub.url}/me/new"
    assert run(hub, tmp_path, create) == f"{hub.url}/me/new"
    upload = f"HfApi().upload_folder(repo_id='me/new', folder_path={str(folder)!r})"
    assert run(hub, tmp_path, upload).startswith(f"{hub.url}/me/new/commit/")
    assert hub.uploaded == {"me/new": files}
    assert read_files(Path(run(hub, tmp_path, "snapshot_download('me/new')"))) == files


@pytest.mark.parametrize("token", ["other", ""])
def test_without_the_token_nothing_is_uploaded(
    hub: FakeHub, tmp_path: Path, token: str
) -> None:
    folder = str(tmp_path / "v1")
    upload = f"HfApi().upload_folder(repo_id='owner/name', folder_path={folder!r})"
    assert run(hub, tmp_path, upload, HF_TOKEN=token) == "HfHubHTTPError"
    assert hub.uploaded == {}


def test_a_range_is_that_part_of_the_file(hub: FakeHub) -> None:
    address = f"{hub.url}/owner/name/resolve/main/a/b.txt"
    with urlopen(URLRequest(address, headers={"Range": "bytes=2-"})) as answer:
        assert (answer.status, answer.read()) == (206, b"xt")
        assert answer.headers["Content-Range"] == "bytes 2-3/4"


def test_a_download_cut_once_resumes(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("owner/name", write_files(tmp_path / "big", {"w.safetensors": WEIGHTS}))
    hub.cut_after("owner/name", "w.safetensors", 1_500_000, times=1)
    path = run(hub, tmp_path, "hf_hub_download('owner/name', 'w.safetensors')")
    assert Path(path).read_bytes() == WEIGHTS
    assert [request.method for request in hub.requests] == ["HEAD", "GET", "GET"]


@pytest.mark.parametrize(
    ("reset", "error", "tries"),
    [(True, "ReadError", 1), (False, "RemoteProtocolError", 6)],
)
def test_a_download_always_cut_fails_and_leaves_no_file(
    hub: FakeHub, tmp_path: Path, reset: bool, error: str, tries: int
) -> None:
    hub.cut_after("owner/name", "config.json", 5, reset=reset)
    assert run(hub, tmp_path, "hf_hub_download('owner/name', 'config.json')") == error
    assert [request.method for request in hub.requests] == ["HEAD"] + ["GET"] * tries
    assert hub.downloaded("owner/name") == set()
    assert not any(
        file.endswith("config.json") for file in read_files(tmp_path / "home")
    )


def test_after_the_end_there_is_no_network(tmp_path: Path) -> None:
    with FakeHub() as hub:
        pass
    assert run(hub, tmp_path, "snapshot_download('a/b')") == "LocalEntryNotFoundError"
