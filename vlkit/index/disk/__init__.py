"""Search over more vectors than memory holds: the parts of ``vlkit embed`` stay on disk as they are.

    index_embeddings(Parts.read("emb"), Path("idx"))
    hits = open_index("idx").search(queries, k=10)

Up to :data:`vlkit.index.disk.build.FLAT_UP_TO` vectors every vector is compared, block after block from the memory
map; beyond, the inverted lists of a FAISS index lie on disk, and its candidates are compared exactly with the vectors.
"""

from vlkit.index.disk.build import auto_disk_factory, index_embeddings
from vlkit.index.disk.reader import DiskIndex, open_index

__all__ = ["DiskIndex", "auto_disk_factory", "index_embeddings", "open_index"]
