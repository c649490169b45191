"""SHERL (ECCV 2024): on tokens, in the joint space, and on T5."""
