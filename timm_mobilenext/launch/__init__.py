"""Registering the models with timm, and running programs that do not import this package."""
