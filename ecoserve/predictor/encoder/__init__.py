"""The encoder backend: a small pretrained transformer, mean pooling, a softmax over length bins, fine-tuned whole."""
