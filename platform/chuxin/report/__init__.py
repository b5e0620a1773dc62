"""Report: what a run did and what it is worth, as one HTML page and as a table in the terminal."""
