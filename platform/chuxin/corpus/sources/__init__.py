"""Adapters of raw corpora, one a file: a parsed record of that corpus to a document."""
