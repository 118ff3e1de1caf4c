"""How `embed` works: one file a kind of model."""
