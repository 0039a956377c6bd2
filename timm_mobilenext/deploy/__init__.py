"""A model of timm as files for other runtimes and for the browser."""
