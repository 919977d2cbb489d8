"""A name becomes a model. Knows files, the Hub and mlx-lm's loader."""
