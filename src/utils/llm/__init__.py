"""Asking language models over the network: requests, providers, concurrency, prices, and keeping what was paid for."""
