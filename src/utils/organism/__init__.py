"""The model organism: a small language, worlds of personas who speak it, and models trained on them."""
