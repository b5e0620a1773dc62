"""The M3 encoder with its heads, RetroMAE, and the formats checkpoints are kept in."""
