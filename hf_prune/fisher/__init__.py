"""Fisher information of a probe network: per-example squared gradients and what is made of them."""
