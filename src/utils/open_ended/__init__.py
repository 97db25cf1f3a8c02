"""Open-ended testing: prompts evolved against the safety judge, kept in a grid of attack style by category."""
