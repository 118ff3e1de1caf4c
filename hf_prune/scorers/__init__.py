"""Scores of rows: one method, one file."""
