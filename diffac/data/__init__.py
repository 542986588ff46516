"""From an environment to a batch: environments, their spaces and states, the replay memory."""
