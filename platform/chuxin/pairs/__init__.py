"""Labelled sets to training groups: adapters, rules; needs nothing of the corpus package, which curates
both.
"""
