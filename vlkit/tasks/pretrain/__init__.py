"""Pre-training of the embedded contrastive base on many drawing styles."""
