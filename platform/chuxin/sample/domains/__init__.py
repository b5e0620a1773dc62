"""The made world's fourteen domains, one file each: kinds of entities, their facts, and two ways to say everything."""
