"""Stages that make the tiny world and its base model."""
