"""Adapters as folders of sentence-transformers, loaded by the library itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.export import saved_adapter
from vlkit.export.sentence_transformers import export_sentence_transformers
from vlkit.export.source import open_source

library = pytest.importorskip("sentence_transformers", minversion="6")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The adapter folder and the exported one."""
    root = tmp_path_factory.mktemp("exports")
    run = saved_adapter(root / "run", "tiny", "sherl")
    assert export_sentence_transformers(open_source(run), root / "a folder") < 1e-6
    return run, root / "a folder"


def test_encode_gives_the_adapters_embeddings(exported: tuple[Path, Path], tmp_path: Path) -> None:
    run, folder = exported
    model = library.SentenceTransformer(str(folder), trust_remote_code=True, device="cpu")
    pipeline = open_source(run).pipeline
    texts = ["a red circle", "a", "two dogs run on the grass"]
    noise = np.random.default_rng(0).integers(0, 255, (2, 50, 40, 3), dtype=np.uint8)
    images = [Image.fromarray(values) for values in noise]
    np.testing.assert_allclose(model.encode(texts), pipeline.embed_texts(texts), atol=1e-6)
    np.testing.assert_allclose(model.encode(images), pipeline.embed_images(images), atol=1e-6)
    assert model.encode(texts[0]).shape == (model.get_embedding_dimension(),) == (192,)
    assert model.max_seq_length == 48 and model.supports("image")
    expected = pipeline.embed_texts(texts[:1]) @ pipeline.embed_images(images).T
    found = model.similarity(model.encode(texts[:1]), model.encode(images))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(
        model.encode(["circle"], prompt="a red "), pipeline.embed_texts(["a red circle"]), atol=1e-6
    )

    model.save(str(tmp_path / "again"))
    again = library.SentenceTransformer(str(tmp_path / "again"), trust_remote_code=True, device="cpu")
    np.testing.assert_array_equal(again.encode(texts), model.encode(texts))


def test_its_evaluators_run(exported: tuple[Path, Path]) -> None:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    model = library.SentenceTransformer(str(exported[1]), trust_remote_code=True, device="cpu")
    texts = {"1": "a red circle", "2": "two dogs run on the grass"}
    evaluator = InformationRetrievalEvaluator(
        texts, texts, {"1": {"1"}, "2": {"2"}}, mrr_at_k=[1], ndcg_at_k=[1], accuracy_at_k=[1], map_at_k=[1],
        precision_recall_at_k=[1],
    )  # fmt: skip
    assert evaluator(model)["cosine_accuracy@1"] == 1.0


def test_the_folder_holds_no_code(exported: tuple[Path, Path]) -> None:
    names = sorted(str(path.relative_to(exported[1])) for path in exported[1].rglob("*") if path.is_file())
    weights = ["adapter/vlkit_adapter.json", "adapter/vlkit_adapter.safetensors"]
    assert names == [*weights, "config_sentence_transformers.json", "modules.json"]
    with pytest.raises(ValueError, match="trust_remote_code"):
        library.SentenceTransformer(str(exported[1]), device="cpu")
