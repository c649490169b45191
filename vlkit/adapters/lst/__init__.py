"""LST, ladder side-tuning (NeurIPS 2022)."""
