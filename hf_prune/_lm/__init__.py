"""What the scorers that ask a causal language model share; nothing public."""
