"""What finds the best operating point, method by method."""
