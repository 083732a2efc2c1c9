"""Photos and what is known of them: manifest, ground truth, benchmarks, labels and splits, decoding."""
