"""Causal pictures of a model: which layers, neurons and edges its margin rests on, and when there is nothing to say."""
