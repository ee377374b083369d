"""Studies, a matrix of trainings from one yml, and comparisons of trained networks."""
