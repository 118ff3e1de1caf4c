"""Fast arithmetic and its threads."""
