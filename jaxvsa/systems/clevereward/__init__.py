"""CleveReward: a reward of videos, learned from pairs of many scored data sets."""
