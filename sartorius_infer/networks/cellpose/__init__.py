"""Cellpose's CPnet (versions 0.7 to 3.1) without the cellpose package."""
