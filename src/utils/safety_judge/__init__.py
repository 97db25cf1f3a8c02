"""The safety judge: labelled prompts in, a language model that says whether a prompt is safe out."""
