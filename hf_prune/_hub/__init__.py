"""How `hub` works: tables, one repo, and the join."""
