"""Figures from artefacts: pure functions to plotly figures, and the one writer that puts them on pages."""
