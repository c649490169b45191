"""FAISS indexes from factory strings: creation, training and search breadth."""

from __future__ import annotations

import contextlib
import math
import re

import faiss
import numpy as np

from vlkit.errors import UserError

# Breadth of approximate searches: clusters visited (a share of all, with a minimum), and candidates kept during graph
# search. FAISS's own defaults, 1 and 16, miss many neighbours.
PROBED_SHARE, PROBED_LEAST, GRAPH_CANDIDATES = 1 / 16, 8, 128

# Up to this number of vectors, exact search takes well below a second on one core.
EXACT_UP_TO = 50_000

_TOO_FEW = re.compile(r"training points \((\d+)\) should be at least as large as number of clusters \((\d+)\)")


def auto_factory(count: int) -> str:
    """The kind of index for ``count`` vectors: exact up to :data:`EXACT_UP_TO`, then about 4 sqrt(count) clusters."""
    if count <= EXACT_UP_TO:
        return "Flat"
    return f"IVF{2 ** round(math.log2(4 * math.sqrt(count)))},Flat"


def new_index(dim: int, factory: str) -> faiss.Index:
    """An empty inner-product index, e.g. of "Flat", "HNSW32", "IVF256,Flat" or "IVF1024,PQ32".

    Raises:
        UserError: FAISS does not understand the string, or it does not fit ``dim``.
    """
    try:
        return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise UserError(
            f"index factory {factory!r} for vectors of width {dim}: {_reason(error)}; "
            "try Flat (exact), HNSW32, or IVF256,Flat"
        ) from None


def trained_index(vectors: np.ndarray, factory: str) -> faiss.Index:
    """An index trained on ``vectors``, float32 [n, D], and filled with them.

    Raises:
        UserError: there are too few vectors for the clusters that ``factory`` asks for.
    """
    vectors = np.ascontiguousarray(vectors)
    index = new_index(vectors.shape[1], factory)
    try:
        if not index.is_trained:
            index.train(vectors)
        index.add(vectors)
    except RuntimeError as error:
        few = _TOO_FEW.search(str(error))
        reason = f"training needs at least {few[2]} vectors, there are {few[1]}" if few else _reason(error)
        raise UserError(
            f"index factory {factory!r}: {reason}; the vectors are kept: use Flat or HNSW32, or an IVF of about "
            f"{max(1, len(vectors) // 39)} clusters"
        ) from None
    return broadened(index)


def broadened(index: faiss.Index) -> faiss.Index:
    """Set the search breadth, if the kind of index has such a setting."""
    clusters = faiss.try_extract_index_ivf(index)
    if clusters is not None:
        probes = min(clusters.nlist, max(PROBED_LEAST, round(clusters.nlist * PROBED_SHARE)))
        faiss.ParameterSpace().set_index_parameter(index, "nprobe", probes)
    with contextlib.suppress(RuntimeError):  # Only graph indexes have this setting, and FAISS has no query for it.
        faiss.ParameterSpace().set_index_parameter(index, "efSearch", GRAPH_CANDIDATES)
    return index


def _reason(error: RuntimeError) -> str:
    """The last part of a FAISS message, without the C++ function and source line before it."""
    return re.sub(r"^Error in .* at \S+:\d+: ", "", " ".join(str(error).split()))
