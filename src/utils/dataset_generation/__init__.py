"""Writing new questions and fine-tuning rows with a language model: asked in batches, checked, selected, made whole."""
