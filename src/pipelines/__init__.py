"""What joins the steps: order, staleness, resume."""
