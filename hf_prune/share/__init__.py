"""Scores for other people: the Hub, cards, pages, published files."""
