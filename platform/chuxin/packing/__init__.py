"""The batch plan: token ids and composition of every global batch, as data that training only reads."""
