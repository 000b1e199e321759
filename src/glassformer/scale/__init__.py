"""Small runs -> laws -> forecast."""
