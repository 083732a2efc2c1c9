"""From photos to descriptors: the Ray Data pipeline, the embedding's identity and the descriptor store."""
