"""A score column in, rows out."""
