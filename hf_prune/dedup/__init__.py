"""Deduplication: copies, near copies, and rows that say the same."""

"""Deduplication: exact, near and partial copies, as scores and clusters; no scorer drops a row."""
