"""The endpoint: a released model behind OpenAI's embeddings protocol on Ray Serve."""
