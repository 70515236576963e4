"""The predictor: learns from measured pairs how fast an offline job is beside an online service."""
