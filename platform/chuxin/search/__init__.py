"""Search over passages: exact dense top-k and BM25, shared by mining and evaluation."""
