"""Batches + model -> weights."""
