"""The Ray Serve application, where Ray is installed: it answers like the server, and refuses wrong arguments."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from helpers.shards import image_bytes
from vlkit.index import IndexWriter, Item
from vlkit.serving.api import listen
from vlkit.tasks.retrieval.pipeline import load_zero_shot

pytest.importorskip("ray.serve")
KEY = {"Authorization": "Bearer k-1"}


@pytest.mark.slow
def test_replicas_answer_as_the_server_does(tmp_path, monkeypatch):
    import ray
    from ray import serve

    from vlkit.serving import ray_serve

    for wrong, says in (
        ({"bas": "tiny"}, "Extra inputs"),
        ({}, "give either model=DIR"),
        ({"base": "tiny", "index": "none"}, "index=none: is not there"),
    ):
        with pytest.raises(ValueError, match=says):
            ray_serve.Arguments.model_validate(wrong)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.chdir(tmp_path)
    pipeline = load_zero_shot("tiny", "cpu")
    images = [Image.open(io.BytesIO(image_bytes(number))) for number in range(4)]
    with IndexWriter.open("index", pipeline.dim, pipeline.identity) as writer:
        writer.add([Item(f"{number}.png") for number in range(4)], pipeline.embed_images(images))
    Path("keys.txt").write_text("k-1\n")
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    words: dict[str, Any] = {"base": "tiny", "index": "index", "api_keys": "keys.txt", "cpus": "0.5"}  # as typed
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(ray_serve.app(ray_serve.Arguments.model_validate(words)), name="vlkit")
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            assert client.get("/healthz").json()["model"] == pipeline.identity
            assert client.post("/v1/embeddings", json={"input": "a dog"}).status_code == 401
            body = client.post("/v1/embeddings", json={"input": ["a dog"]}, headers=KEY).json()
            found = np.array(body["data"][0]["embedding"], np.float32)
            np.testing.assert_allclose(found, pipeline.embed_texts(["a dog"])[0], atol=1e-5)
            image = base64.b64encode(image_bytes(2)).decode()
            hits = client.post("/search", json={"image": image, "k": 2}, headers=KEY).json()["results"]
            assert hits[0]["id"] == "2.png" and len(hits) == 2
            wrong_text = client.post("/v1/embeddings", json={"input": [3]}, headers=KEY)
            assert wrong_text.status_code == 400 and "valid string" in wrong_text.json()["error"]["message"]
    finally:
        serve.shutdown()
        ray.shutdown()
