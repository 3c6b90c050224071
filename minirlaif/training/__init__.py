"""Optimiser steps, checkpoints, schedules."""
