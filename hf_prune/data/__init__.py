"""Datasets in and out: columns as Arrow, who a row is, samples, texts."""
