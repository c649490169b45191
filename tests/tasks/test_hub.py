"""Adapters on the hub: pushed to a stand-in server, whose files are then loaded through the library's own cache."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import vlkit
from vlkit.errors import UserError
from vlkit.tasks.hub import is_repository, push_to_hub

SHIPPED = Path(vlkit.__file__).parent / "assets" / "adapters" / "retrieval"
REVISION = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as uploads and downloads of small files need."""

    files: dict[str, bytes]

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._file(body=True)
        elif self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in self.files]
            tree = [{"type": "file", "path": n, "size": len(c), "oid": "1"} for n, c in self.files.items()]
            self._answer(tree if "/tree/" in self.path else {"id": "me/mine", "sha": REVISION, "siblings": siblings})
        else:
            self._answer({})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/preupload/main"):
            named = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in named]})
        elif self.path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                {"commitUrl": "https://huggingface.co/me/mine/commit/1", "commitOid": REVISION, "success": True}
            )
        else:
            self._answer({"url": "https://huggingface.co/me/mine", "errors": [], "warnings": []})

    def _file(self, body: bool) -> None:
        content = self.files.get(self.path.split(f"/resolve/{REVISION}/")[-1].split("?")[0])
        if content is None:
            return self._answer({}, 404 if "/resolve/" in self.path else 200)
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _answer(self, content: Any, code: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"files": files}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "checkpoint" / "state.safetensors").write_bytes(b"private")
    for file in SHIPPED.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "metrics.json").write_text(json.dumps({"split": "test", "after": {"rsum": 123.456, "i2t_r1": 20.0}}))
    (folder / "README.md").write_text("# retrieval: sherl adapter\n")
    return folder


@pytest.mark.slow
def test_a_pushed_adapter_is_loaded_by_its_name(hub: tuple[str, dict[str, bytes]], tmp_path: Path) -> None:
    url, files = hub
    folder = run_folder(tmp_path)
    (folder / "peft").mkdir()
    (folder / "peft" / "adapter_config.json").write_text("{}")
    push_to_hub(folder, "me/mine", token="hf_x", endpoint=url)
    own = {"vlkit_adapter.json", "vlkit_adapter.safetensors", "metrics.json", "README.md"}
    assert set(files) == {*own, "peft/adapter_config.json"}
    assert files["vlkit_adapter.safetensors"] == (folder / "vlkit_adapter.safetensors").read_bytes()
    _, front, text = files["README.md"].decode().split("---\n", 2)
    about = yaml.safe_load(front)
    assert about["library_name"] == "vlkit" and about["tags"] == ["vlkit", "retrieval", "sherl"]
    (index,) = about["model-index"]
    metrics = {metric["type"]: metric["value"] for result in index["results"] for metric in result["metrics"]}
    assert metrics == {"rsum": 123.46, "i2t_r1": 20.0} and 'vlkit.load("me/mine")' in text
    code = "import vlkit; print(vlkit.load('me/mine', device='cpu').embed_texts(['a red house']).tolist())"
    here = f"import vlkit; print(vlkit.load({str(folder)!r}, device='cpu').embed_texts(['a red house']).tolist())"
    environment = {**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"}
    options = {"capture_output": True, "text": True, "timeout": 120, "cwd": tmp_path}
    found = subprocess.run([sys.executable, "-c", code], env=environment, **options)
    assert found.returncode == 0, found.stderr
    offline = subprocess.run([sys.executable, "-c", code], env={**environment, "HF_HUB_OFFLINE": "1"}, **options)
    local = subprocess.run([sys.executable, "-c", here], env=environment, **options)
    assert found.stdout == offline.stdout == local.stdout != ""


def test_what_is_no_repository_and_what_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_repository("me/mine") and is_repository("me/mine@v1.0")
    assert not is_repository("runs/vqa/3") and not is_repository("mine") and not is_repository(str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr("vlkit.encoders.hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="me/none: is neither a folder nor an adapter that can be had from the hub"):
        vlkit.load("me/none")
    with pytest.raises(UserError, match="repository 'mine': must be org/name"):
        push_to_hub(SHIPPED, "mine")
