"""Ways of spending a thinking budget without training, one file a family.

A sampler here is a `FollowingSampler`; what cannot be one asks several times and says
what came of it as an `Outcome`. They are named, and get their settings, in
`evaluate.strategies`.
"""
