"""Measurements: each prints what it compares with, in the same run, as ratios."""
