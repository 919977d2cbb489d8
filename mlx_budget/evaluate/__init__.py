"""Accuracy against thinking budget: strategies, tasks, grading, metrics and plots."""
