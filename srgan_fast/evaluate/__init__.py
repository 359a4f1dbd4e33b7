"""Scores with named conventions: metrics, benchmark sets, reports."""
