"""`hf-prune`."""
