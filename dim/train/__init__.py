"""Fine-tuning of the network on triplets of labelled photos; `dim.train.loop.do_train` is a whole run."""
