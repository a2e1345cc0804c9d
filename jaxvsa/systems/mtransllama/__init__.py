"""MTransLLAMA: an image Q-Former turned to video, in front of a frozen language model."""
