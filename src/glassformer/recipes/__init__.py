"""Recipes that come with glassformer; each states hardware, minutes and the loss to expect."""
