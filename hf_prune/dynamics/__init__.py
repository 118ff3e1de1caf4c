"""Scores that come out of training: the log of a run, its recorders, and one file a score."""
