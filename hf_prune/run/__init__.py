"""`score()`: shards, processes, the join, what it cost."""
