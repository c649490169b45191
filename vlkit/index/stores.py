"""Copying an index into a vector database by the database's own client: LanceDB or Qdrant.

Each row holds the id of its item, its vector, ``model`` (what made the vectors), ``export`` (the export that wrote it
last) and the item's metadata as JSON. An id is always the same row, so an export that is repeated or was interrupted
ends in the same table; rows of items that the index no longer holds are deleted at the end.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vlkit.errors import UserError
from vlkit.extract.identity import model_key
from vlkit.index.disk import DiskIndex
from vlkit.index.files import Item
from vlkit.index.reader import VectorIndex

BATCH = 1024
"""Rows sent at once."""
_NAMESPACE = uuid.UUID("0d5f4d5c-1f0e-5c0b-9a53-4b8f6a1d7c21")


@dataclass(frozen=True)
class Batch:
    """Rows of an index: items, and float32 [b, D] vectors of unit norm."""

    items: Sequence[Item]
    vectors: np.ndarray


class Store(Protocol):
    """A table of a vector database.

    Attributes:
        model: what made the vectors that it holds; None if it is empty, "" if vlkit did not write it.
        width: D of its vectors.
    """

    model: str | None
    width: int

    def write(self, batch: Batch, model: str, export: str) -> None:
        """Insert rows, or replace those with the same ids."""
        ...

    def drop_others(self, export: str) -> None:
        """Delete the rows of other exports."""
        ...

    def __len__(self) -> int: ...
    def nearest(self, query: np.ndarray, k: int) -> list[str]:
        """Ids of the k rows with the largest inner product with ``query``, float32 [D], best first."""
        ...


def export_index(
    index: DiskIndex | VectorIndex, store: Store, progress: Callable[[int, int], None] = lambda done, total: None
) -> int:
    """Copy all items of an index into a store, batch after batch.

    Args:
        index: the index.
        store: an empty table, or one that holds an export of vectors of the same model.
        progress: called with the numbers of items done and in all.

    Returns:
        The number of rows in the store afterwards.

    Raises:
        UserError: the store holds vectors of another model, or other data.
    """
    model, export = model_key(index.model_id), uuid.uuid4().hex
    if store.model is not None and store.model != model:
        held = f"vectors of {store.model}" if store.model else "rows that vlkit did not write"
        raise UserError(f"the store holds {held}, the index those of {model}; choose another --collection")
    if store.width != index.dim:
        raise UserError(f"the store holds vectors of width {store.width}, the index {index.dim}; choose another one")
    done = 0
    for batch in _batches(index):
        store.write(batch, model, export)
        done += len(batch.items)
        progress(done, len(index))
    store.drop_others(export)
    return len(store)


def agreement(index: DiskIndex | VectorIndex, store: Store, queries: int = 16, k: int = 10) -> float:
    """Share of the k best of some of the index's own vectors that a search in the store finds, too."""
    rows = np.linspace(0, len(index) - 1, min(queries, len(index))).astype(np.int64)
    own, k = _vectors(index, rows), min(k, len(index))
    expected = [{hit.item.id for hit in hits} for hits in index.search(own, k)]
    found = [set(store.nearest(query, k)) for query in own]
    return float(np.mean([len(a & b) / k for a, b in zip(expected, found, strict=True)]))


def _vectors(index: DiskIndex | VectorIndex, rows: np.ndarray) -> np.ndarray:
    return index.vectors_of(rows) if isinstance(index, DiskIndex) else np.asarray(index.vectors[rows], np.float32)


def _batches(index: DiskIndex | VectorIndex) -> Iterator[Batch]:
    for first in range(0, len(index), BATCH):
        rows = np.arange(first, min(first + BATCH, len(index)))
        held = index.item if isinstance(index, DiskIndex) else index.items.__getitem__
        yield Batch([held(int(row)) for row in rows], _vectors(index, rows))


def open_store(kind: str, place: str, collection: str, dim: int) -> Store:
    """Open a table, and create it if it is missing.

    Args:
        kind: ``lancedb`` or ``qdrant``.
        place: a folder; or the address of a server (``db://…``, ``http://…``), whose key is in the environment as
            LANCEDB_API_KEY or QDRANT_API_KEY.
        collection: name of the table.
        dim: D, if it is created.

    Raises:
        UserError: the client is not installed, or cannot open the table.
    """
    try:
        return {"lancedb": LanceStore, "qdrant": QdrantStore}[kind](place, collection, dim)
    except ImportError as error:
        raise UserError(f"{kind}: {error}; pip install 'vlkit[stores]'") from None
    except UserError:
        raise
    except Exception as error:  # clients raise errors of many types
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{place}: {kind} cannot open collection {collection!r} ({reason})") from error


class LanceStore:
    """A table of LanceDB: columns id, vector, model, export, metadata."""

    def __init__(self, place: str, collection: str, dim: int) -> None:
        import lancedb  # pyright: ignore[reportMissingImports]
        import pyarrow as pa

        key = os.environ.get("LANCEDB_API_KEY")
        database = lancedb.connect(place, **({"api_key": key} if key else {}))
        texts = [pa.field(name, pa.string()) for name in ("id", "model", "export", "metadata")]
        schema = pa.schema([*texts, pa.field("vector", pa.list_(pa.float32(), dim))])
        self._table: Any = database.create_table(collection, schema=schema, exist_ok=True)
        self._schema = self._table.schema
        if set(self._schema.names) != set(schema.names):
            self.model, self.width = "", dim
            return
        first = self._table.search().select(["model"]).limit(1).to_list()
        self.model: str | None = first[0]["model"] if first else None
        self.width: int = self._schema.field("vector").type.list_size

    def write(self, batch: Batch, model: str, export: str) -> None:
        """See :class:`Store`."""
        import pyarrow as pa

        count = len(batch.items)
        columns = {
            "id": [item.id for item in batch.items],
            "model": [model] * count,
            "export": [export] * count,
            "metadata": [json.dumps(item.metadata) for item in batch.items],
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(batch.vectors.reshape(-1)), self.width),
        }
        rows = pa.table({name: columns[name] for name in self._schema.names}, schema=self._schema)
        self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)

    def drop_others(self, export: str) -> None:
        """See :class:`Store`; also joins the small files of the batches."""
        self._table.delete(f"export != '{export}'")
        self._table.optimize()

    def __len__(self) -> int:
        return self._table.count_rows()

    def nearest(self, query: np.ndarray, k: int) -> list[str]:
        """See :class:`Store`."""
        found = self._table.search(query).distance_type("dot").select(["id", "_distance"]).limit(k)
        return [row["id"] for row in found.to_list()]


class QdrantStore:
    """A collection of Qdrant: the payload holds id, model, export and metadata; a point's id is a UUID of the id."""

    def __init__(self, place: str, collection: str, dim: int) -> None:
        from qdrant_client import QdrantClient, models  # pyright: ignore[reportMissingImports]

        self._models, self._name = models, collection
        if "://" in place:
            self._client: Any = QdrantClient(url=place, api_key=os.environ.get("QDRANT_API_KEY"))
        else:
            Path(place).mkdir(parents=True, exist_ok=True)
            self._client = QdrantClient(path=place)
        if not self._client.collection_exists(collection):
            params = models.VectorParams(size=dim, distance=models.Distance.DOT, on_disk=True)
            self._client.create_collection(collection, vectors_config=params)
        vectors = self._client.get_collection(collection).config.params.vectors
        self.width: int = getattr(vectors, "size", 0)
        points, _ = self._client.scroll(collection, limit=1)
        self.model: str | None = (points[0].payload or {}).get("model", "") if points else None

    def write(self, batch: Batch, model: str, export: str) -> None:
        """See :class:`Store`."""
        shared = {"model": model, "export": export}
        self._client.upsert(
            self._name,
            points=self._models.Batch(
                ids=[str(uuid.uuid5(_NAMESPACE, item.id)) for item in batch.items],
                vectors=batch.vectors.tolist(),
                payloads=[{**shared, "id": item.id, "metadata": item.metadata} for item in batch.items],
            ),
            wait=True,
        )

    def drop_others(self, export: str) -> None:
        """See :class:`Store`."""
        models = self._models
        this = models.FieldCondition(key="export", match=models.MatchValue(value=export))
        self._client.delete(self._name, points_selector=models.FilterSelector(filter=models.Filter(must_not=[this])))

    def __len__(self) -> int:
        return self._client.count(self._name, exact=True).count

    def nearest(self, query: np.ndarray, k: int) -> list[str]:
        """See :class:`Store`."""
        found = self._client.query_points(self._name, query=query.tolist(), limit=k, with_payload=["id"])
        return [point.payload["id"] for point in found.points]
