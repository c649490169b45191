"""Task heads: from encoder outputs to task outputs."""
