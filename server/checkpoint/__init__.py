"""What people bring: a model's files, as arrays and a tokenizer."""
