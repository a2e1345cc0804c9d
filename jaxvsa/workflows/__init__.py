"""What a door calls; the only room that sees all the others."""
