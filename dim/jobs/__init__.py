"""The jobs, a module each. Its docstring is the text of `--help`. jobs/NAME.py and the command `dim NAME` run it."""
