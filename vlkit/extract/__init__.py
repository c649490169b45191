"""Embed large collections of images, shard by shard, in any number of processes.

    parts = Parts.open("emb", model.identity, model.dim)
    summary = embed_shards(find_shards(["shards/{000..099}.tar"]), model, parts)

Each shard gives one part, which is renamed into place when it is whole. A part that exists is skipped: continuing after
a crash, a retry and a further machine are the same thing.
"""

from vlkit.extract.parts import Parts
from vlkit.extract.pipeline import ImageModel, Options, Summary, embed_shards
from vlkit.extract.share import Share

__all__ = ["ImageModel", "Options", "Parts", "Share", "Summary", "embed_shards"]
