"""Environments that come with diffac. Importing this package registers them with gymnasium, and does nothing else."""

import gymnasium

gymnasium.register("diffac/MultiGoal-v0", "diffac.envs.multi_goal:MultiGoal", max_episode_steps=100)
gymnasium.register("diffac/TwoRoutes-v0", "diffac.envs.two_routes:TwoRoutes", max_episode_steps=100)
gymnasium.register("diffac/FourModes-v0", "diffac.envs.four_modes:FourModes")
