"""Hub ids: the real huggingface_hub against a cache in its own layout and a Hub on this machine.

The library reads its environment when it is imported, so every case runs in a process of its own.
"""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest

from jaxunlearn.errors import UserError
from jaxunlearn.models.hub import hub_id, model_folder

COMMIT, OLDER = "a" * 40, "b" * 40
WANTED = ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.model", "vocab.txt"]
UNWANTED = [
    "consolidated.safetensors", "modeling_own.py", "onnx/config.json", "pytorch_model.bin",
    "training_args.bin", "vocab.pkl",
]  # fmt: skip
SCRIPT = """
import json, sys
from jaxunlearn.errors import UserError
from jaxunlearn.models.hub import model_folder
for path in sys.argv[1:]:
    try:
        print(json.dumps(str(model_folder(path))))
    except UserError as error:
        print(json.dumps("error: " + str(error)))
"""


def resolve(*paths, cwd, **environment):
    """What `model_folder` gives for each path, with only these settings of the Hub."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    clean = {k: v for k, v in clean.items() if not k.lower().endswith("_proxy")}
    # Where the package is found must not hang on the folder that the process starts in.
    settings = {"HF_HOME": str(cwd / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *paths],
        env={**clean, **settings, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache with two commits of org/name, as the library lays it out."""
    root = tmp_path_factory.mktemp("cache")
    repo = root / "models--org--name"
    for folder in ("refs", "blobs"):
        (repo / folder).mkdir(parents=True)
    for ref, commit in (("main", COMMIT), ("v1.0", OLDER)):
        (repo / "refs" / ref).write_text(commit)
        (repo / "blobs" / f"{ref}-blob").write_text("{}")
        (repo / "snapshots" / commit).mkdir(parents=True)
        link = repo / "snapshots" / commit / "config.json"
        link.symlink_to(f"../../blobs/{ref}-blob")
    return root


class Hub(BaseHTTPRequestHandler):
    """The few answers of the Hub that a download needs."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urlsplit(self.path).path
        if "gated" in path:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "stalls" in path:
            time.sleep(3)
        elif "missing" in path:
            self.answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.endswith("/revision/none"):
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif "/tree/" in path:
            names = WANTED + UNWANTED
            files = [{"type": "file", "path": n, "size": 2, "oid": "0" * 40} for n in names]
            self.answer(200, json.dumps(files).encode())
        elif path.startswith("/api/models/"):
            self.answer(200, json.dumps({"id": "org/name", "sha": COMMIT}).encode())
        else:
            self.answer(200, b"{}", {"ETag": '"' + "e" * 40 + '"', "X-Repo-Commit": COMMIT})

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers, **{"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def hub():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_offline_ids_come_from_the_cache(cache, tmp_path):
    (tmp_path / "local" / "folder").mkdir(parents=True)
    ids = ["org/name", "org/name@v1.0", f"org/name@{OLDER}", "local/folder"]
    missing = ["org/other", "org/name@v9"]
    *found, other, revision = resolve(
        *ids, *missing, cwd=tmp_path, HF_HUB_CACHE=str(cache), HF_HUB_OFFLINE="1"
    )
    snapshots = cache / "models--org--name" / "snapshots"
    commits = [str(snapshots / commit) for commit in (COMMIT, OLDER, OLDER)]
    assert found == [*commits, "local/folder"]
    for text in (
        "org/other: no such folder",
        str(cache),
        "HF_HUB_OFFLINE",
        "hf download org/other",
    ):
        assert text in other
    assert "hf download org/name --revision v9" in revision


def test_without_a_network_the_cache_serves_and_the_rest_fails_at_once(cache, tmp_path):
    begin = time.monotonic()
    found, error, commit = resolve(
        "org/name",
        "models/lama",
        f"models/lama@{COMMIT}",
        cwd=tmp_path,
        HF_HUB_CACHE=str(cache),
        HF_ENDPOINT="http://127.0.0.1:9",
    )
    assert found.endswith(COMMIT)
    assert error.startswith("error: models/lama: no such folder, and http://127.0.0.1:9 did not")
    assert "Connect" in error and str(cache) in error and "hf download models/lama" in error
    assert "no such folder" in commit
    assert time.monotonic() - begin < 10


def test_a_download_takes_weights_config_and_tokenizer_only(hub, tmp_path):
    home = tmp_path / "own"
    first, again = resolve("org/name", "org/name", cwd=tmp_path, HF_HOME=str(home), HF_ENDPOINT=hub)
    assert first == again == str(home / "hub" / "models--org--name" / "snapshots" / COMMIT)
    files = [path for path in (home / "hub").rglob("snapshots/*/**/*") if path.is_file()]
    assert sorted(path.name for path in files) == WANTED
    [offline] = resolve("org/name", cwd=tmp_path, HF_HOME=str(home), HF_HUB_OFFLINE="1")
    assert offline == first


def test_what_the_hub_refuses(hub, tmp_path):
    errors = resolve(
        "org/gated", "org/missing", "org/name@none", "org/stalls", "org/a--b",
        cwd=tmp_path, HF_ENDPOINT=hub, HF_HUB_ETAG_TIMEOUT="1",
    )  # fmt: skip
    told = [
        ("gated", "licence", f"{hub}/org/gated", "HF_TOKEN"),
        ("no model org/missing", "spelling", "HF_TOKEN"),
        ("no revision none", f"{hub}/org/name"),
        ("ReadTimeout", "network"),
        ("no Hub id", "--"),
    ]
    for error, texts in zip(errors, told, strict=True):
        assert "no such folder" in error and "\n" not in error
        assert not [text for text in texts if text not in error], error


@pytest.mark.parametrize(
    "text",
    ["", "name", "./a/b", "../a", "/a/b", "~/a", "~nobody/a", "a/b/c", "a\\b", "a/b@", "a/b@../c",
     "a/b@c@d", "a b/c", "a/b\n", "é/b", "org/.name", "a" * 5000],
)  # fmt: skip
def test_what_is_no_id(text):
    assert hub_id(text) is None
    with pytest.raises(UserError, match="no such folder") as caught:
        model_folder(text)
    assert "\n" not in str(caught.value)


def test_local_folders_and_files(tmp_path, monkeypatch):
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "file").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert str(model_folder("org/name")) == "org/name"
    assert model_folder("~/org/name") == model_folder(tmp_path / "org/name")
    with pytest.raises(UserError, match="org/file: is a file"):
        model_folder("org/file")


def test_ids():
    assert hub_id("org/name") == ("org/name", None)
    assert hub_id("org-1/Name_2.5@v1.0") == ("org-1/Name_2.5", "v1.0")
