"""Evaluation: models and BM25 on retrieval benchmarks, with intervals that say which differences are real."""
