"""Accuracies that say how sure they are."""
