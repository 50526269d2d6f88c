"""A model's files as people bring them, read as arrays and a tokenizer."""
