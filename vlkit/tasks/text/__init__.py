"""Text to text: classification and regression of texts and pairs of texts."""
