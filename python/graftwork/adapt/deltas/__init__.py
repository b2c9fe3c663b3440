"""Sparse deltas: what they hold, how they are made, put on models, added up and kept."""
