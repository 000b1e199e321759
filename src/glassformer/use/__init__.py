"""Weights -> words, with the weights frozen."""
