"""`python -m hf_prune` is `hf-prune`."""

from hf_prune.cli.main import main

if __name__ == "__main__":
    main()
