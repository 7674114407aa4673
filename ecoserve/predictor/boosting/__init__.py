"""The LightGBM backend: counts and words of a request, a linear model on the words, boosted trees over both."""
