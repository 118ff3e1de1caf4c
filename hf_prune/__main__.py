"""`python -m hf_prune` is `hf-prune`."""

from .cli import main

if __name__ == "__main__":
    main()
