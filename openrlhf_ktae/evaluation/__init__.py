"""Evaluate models and stored responses: accuracies with intervals, and paired comparisons."""
