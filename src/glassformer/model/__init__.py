"""Ids -> logits: the Transformer, readable line by line."""
