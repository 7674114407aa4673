"""Modelled GPUs: measured kernel times, put together as vLLM runs them."""
