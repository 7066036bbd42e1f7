"""Explanations of classifiers."""
