"""The dashboard: pages over artefacts on disk. Nothing here estimates; figures come from `src.visualizations`."""
