"""SHERL (ECCV 2024) on tokens, on the pooled embedding, and on T5."""
