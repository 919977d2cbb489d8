"""The method inside mlx-lm's loops. Knows nothing of files, the Hub or terminals."""
