"""VC-CSA: opinion and emotion of a comment, given the video that it answers."""
