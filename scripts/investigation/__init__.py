"""Measurements that lead to the best operating point, method by method."""
