"""Rewards of sampled answers: computed ones, reward models, and rollouts."""
