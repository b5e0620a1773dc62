"""Mining: passages found for each query, scored by a cross-encoder, chosen as positives and negatives."""
