"""Labels of clusters: numbers from 0, and what stands for a row that was left out of a clustering."""

EXCLUDED = -1  # as scikit-learn labels noise: activations that are no numbers
