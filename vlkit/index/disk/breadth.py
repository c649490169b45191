"""How much of the inverted lists a search reads: chosen for a recall when the index is made, then stored in it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import faiss
import numpy as np

from vlkit.index.disk.matrix import BLOCK, PartsMatrix

RECALL, RANK = 0.95, 10
"""Share of the exact :data:`RANK` nearest that a search must find."""
FACTORS = (10, 20, 40, 80, 160)
"""Candidates per result to choose from."""
_MOST_CANDIDATES = 10_000  # per query, unless the smallest factor asks for more; bounds reads and memory of a large k
_QUERIES = 128
_PAGE = 4096  # bytes that a random read of one vector takes from the disk

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Breadth:
    """What a search looks at.

    Attributes:
        probes: clusters whose lists are read.
        refined: candidates per result that are compared exactly.
    """

    probes: int
    refined: int = FACTORS[0]

    def candidates(self, k: int) -> int:
        """Candidates for ``k`` results."""
        return min(self.refined * k, max(FACTORS[0] * k, _MOST_CANDIDATES))


def search_lists(
    index: faiss.Index, matrix: PartsMatrix, queries: np.ndarray, k: int, breadth: Breadth
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of the candidates, compared exactly: float32 [Q, k] and int64 [Q, k], padded with -inf and -1."""
    wanted = min(breadth.candidates(k), len(matrix))
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    found = np.full((len(queries), k), -1, dtype=np.int64)
    step = max(1, BLOCK // wanted)  # so that few vectors are in memory at once
    for start in range(0, len(queries), step):
        few = slice(start, start + step)
        exact, rows = _compared(index, matrix, queries[few], wanted, breadth.probes)
        best = np.argsort(-exact, axis=1, kind="stable")[:, :k]
        scores[few] = np.take_along_axis(exact, best, axis=1)
        found[few] = np.where(np.isfinite(scores[few]), np.take_along_axis(rows, best, axis=1), -1)
    return scores, found


def choose_breadth(index: faiss.Index, matrix: PartsMatrix) -> Breadth:
    """The breadth that reads the fewest bytes per query and has a recall@10 of :data:`RECALL`.

    The queries are some of the index's own vectors, each without itself. Clusters are tried in powers of two. More
    candidates make up for codes too coarse to tell near vectors apart, more clusters for neighbours beyond a border.
    """
    lists = faiss.extract_index_ivf(index)
    rows = np.unique(np.linspace(0, len(matrix) - 1, _QUERIES).astype(np.int64))
    queries, k = matrix.take(rows), min(RANK, len(matrix) - 1)
    if k < 1:
        return Breadth(1)
    # The query itself is among its neighbours, first or behind equal ones: one more of them counts.
    limit = matrix.nearest(queries, k + 1)[0][:, -1:] - 1e-5
    bytes_per_list = lists.code_size * len(matrix) / lists.nlist
    chosen, least, recalls = None, np.inf, np.zeros(1)
    for probes in sorted({*(2**power for power in range(lists.nlist.bit_length())), lists.nlist}):
        if probes * bytes_per_list >= least:
            break
        recalls = _recalls(index, matrix, queries, limit, k, probes)
        for factor, recall in zip(FACTORS, recalls, strict=True):
            read = probes * bytes_per_list + factor * k * _PAGE
            if recall >= RECALL and read < least:
                chosen, least = Breadth(probes, factor), read
    if chosen is None:
        log.warning(
            "all clusters are visited and only %.0f %% of the nearest are found: the codes are too coarse; give more "
            "clusters, or codes with more bits (--factory IVF%d,SQ8)",
            100 * recalls[-1],
            lists.nlist,
        )
    return chosen or Breadth(lists.nlist, FACTORS[-1])


def _recalls(
    index: faiss.Index, matrix: PartsMatrix, queries: np.ndarray, limit: np.ndarray, k: int, probes: int
) -> np.ndarray:
    """The recall with each of :data:`FACTORS`; ``limit``, [Q, 1]: the smallest score of the k + 1 nearest."""
    found = np.zeros(len(FACTORS))
    wanted = [min(factor * k, len(matrix)) for factor in FACTORS]
    for query, least in zip(queries, limit, strict=True):
        exact = _compared(index, matrix, query[None], wanted[-1], probes)[0][0]
        found += [np.clip(np.sum(exact[:some] >= least) - 1, 0, k) / k for some in wanted]
    return found / len(queries)


def _compared(
    index: faiss.Index, matrix: PartsMatrix, queries: np.ndarray, wanted: int, probes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates in the order of their codes' scores: exact scores and rows, [Q, wanted]; -inf and -1 where missing."""
    # Parameters of this call, not of the index: other threads search it, too.
    settings = faiss.SearchParametersIVF()
    settings.nprobe = probes
    _, rows = index.search(queries, wanted, params=settings)
    exact = np.einsum("qd,qcd->qc", queries, matrix.take(np.maximum(rows, 0)))
    exact[rows < 0] = -np.inf
    return exact, rows
