"""How `run` works: shards, part files, processes, and the join."""
