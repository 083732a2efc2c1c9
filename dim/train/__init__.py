"""Fine-tuning: each epoch the training photos are embedded again, triplets mined, and the network fitted to them."""
