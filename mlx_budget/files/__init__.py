"""Bytes on disk and on the Hub. Knows formats and names; nothing of what they mean."""
