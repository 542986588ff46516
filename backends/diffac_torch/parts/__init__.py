"""The mathematics of the parts that `diffac.parts` declares, and nothing else."""
