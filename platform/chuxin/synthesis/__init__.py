"""Passages → queries that an LLM wrote, judged by rules and by an LLM; each row with its status."""
