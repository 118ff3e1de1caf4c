"""Deduplication: copies, near copies, and rows that say the same."""
