"""Raw text to clean passages: read sources, normalise, split, measure, dedup, decontaminate; the verbs
ingest and curate.
"""
