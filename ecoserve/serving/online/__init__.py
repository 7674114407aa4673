"""Learning response lengths from the responses that a server gives; ``ecoserve serve --learn``."""
