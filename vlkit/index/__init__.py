"""A folder of embeddings to search: FAISS vectors with ids and metadata, brought up to date in place.

    with IndexWriter.open("idx", dim=512, model_id="ViT-B-32 ...") as writer:
        plan = writer.diff(items)                 # new, changed and removed items
        writer.remove(plan.removed)
        for batch in batches(plan.todo):
            writer.add(batch, embed(batch))       # saved every few hundred items
    query = query_vector(text_terms("dog + snow - car"), pipeline)
    hits = VectorIndex.open("idx").search(query, k=5, min_score=0.2)

Scores are inner products: cosine similarity if all vectors have unit norm. Q queries, n items, D embedding width.
"""

from vlkit.index.files import Item
from vlkit.index.query import Term, query_vector, text_terms
from vlkit.index.reader import Hit, VectorIndex
from vlkit.index.writer import IndexWriter, Plan

__all__ = ["Hit", "IndexWriter", "Item", "Plan", "Term", "VectorIndex", "query_vector", "text_terms"]
