"""The made world's fourteen domains, one file each: kinds of entities, facts, and two ways to say each."""
