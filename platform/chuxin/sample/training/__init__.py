"""How the sample LLM and the sample reranker were made: training data from the made world, tokenizer, two trainers."""
