"""What the training pictures are said to mean, tested as hypotheses over trainings that differ in their seed."""
