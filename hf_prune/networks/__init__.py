"""Rows through networks: texts, images, classifiers, causal language models."""
