"""Reinforcement learning: losses, advantages, rollouts."""
