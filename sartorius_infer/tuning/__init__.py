"""Choosing rules, fusion and weights by the score."""
