"""Benchmarks of graftwork, and the real models, real text and small trainers that they share."""
