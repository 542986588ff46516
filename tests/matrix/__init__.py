"""Every combination of parts: which ones make a learner, which are refused, and why."""
