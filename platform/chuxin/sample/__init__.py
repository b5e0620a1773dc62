"""The embedded world: a seeded, made-up Chinese corpus in the layouts of the real files."""
