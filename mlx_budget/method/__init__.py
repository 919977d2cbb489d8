"""Budget Guidance itself: arrays in, arrays out. Knows nothing of mlx-lm."""
