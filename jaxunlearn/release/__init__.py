"""Adapters that learn what a model reveals are subtracted from it, again and again."""
