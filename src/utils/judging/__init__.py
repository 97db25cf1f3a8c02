"""Scoring answers: the rubric, the judges that read it, what becomes of a reply, agreement and calibration."""
