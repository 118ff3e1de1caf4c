"""Several scorers and pruning rules as one."""
