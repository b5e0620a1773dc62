"""Losses, one idea a file; pure torch."""
