"""Adapters of labelled sets, one a file: a parsed record of that set to a query with its passages."""
