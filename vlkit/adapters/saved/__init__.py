"""Compressed saved activations (S2A): the forward is exact, and what backward needs is kept in a few bits."""
