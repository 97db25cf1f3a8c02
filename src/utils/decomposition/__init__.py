"""Taking a persona apart: what its activations are made of, and how sure one may be of it."""
