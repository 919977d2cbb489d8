"""Plan and budget: a question in parts, each with a share of the budget of its own.

Lin et al., "Plan and Budget: Effective and Efficient Test-Time Scaling on Large
Language Model Reasoning", arXiv 2505.16122. The model makes the plan, `shares` splits
the budget, and `stretches` holds each part to its share by budget guidance, where the
published code asks for it in words.
"""
