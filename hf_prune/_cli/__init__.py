"""How `cli` works: data in and out, scorers by name, and what is shown."""
