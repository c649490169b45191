"""Moment retrieval, highlight detection and summaries of long videos."""
