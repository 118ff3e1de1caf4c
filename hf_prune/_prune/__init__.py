"""How `prune` decides: rules on arrays, and what they are given."""
