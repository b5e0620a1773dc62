"""Chuxin: from raw Chinese text to a served and proven retrieval model, on one Ray cluster."""
