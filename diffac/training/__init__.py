"""The training loop and what it is made of: its arguments, evaluations, callbacks, the log of an interval."""
