"""Settings that are valid alone but not together."""

import difflib

from minirlaif.config.schema import Config
from minirlaif.stages import registry


def conflicts(cfg: Config) -> list[str]:
    """Settings that are valid alone but not together."""
    problems = _method_conflicts(cfg) + _reward_conflicts(cfg)
    answers, wanted = cfg.feedback.answers + cfg.feedback.context_answers, cfg.feedback.pairs_per_prompt
    possible = answers * (answers - 1) // 2
    if possible < wanted:
        problems.append(f"feedback.pairs_per_prompt is {wanted}, but {answers} answers form {possible}: raise feedback.answers")
    if cfg.rollout.normalize_score and cfg.rollout.rollouts < 2:
        problems.append("rollout.normalize_score needs the deviation of several scores: raise rollout.rollouts, which is 1")
    if cfg.data.world and cfg.rollout.normalize_by not in ("", "type"):
        problems.append(f"rollout.normalize_by is {cfg.rollout.normalize_by}, but prompts of the tiny world have type alone")
    if cfg.rollout.normalize_by and not cfg.rollout.normalize_score:
        problems.append("rollout.normalize_by changes nothing without rollout.normalize_score: set that to true")
    if cfg.data.world:
        unread = [name for name in ("clips", "sft", "prompts", "dev", "test") if getattr(cfg.data, name)]
        if unread:
            named = ", ".join(f"data.{name}" for name in unread)
            problems.append(f'data.world is {cfg.data.world}, so {named} would not be read: empty it, or set data.world to ""')
        if cfg.sft.enabled and not cfg.world.sft_clips + cfg.world.sft_short_clips:
            problems.append("world.sft_clips and world.sft_short_clips are both 0: raise one, sft needs rows")
    return problems


def _method_conflicts(cfg: Config) -> list[str]:
    """What is wrong with the list of methods."""
    methods, problems = cfg.optimize.methods, []
    for name in dict.fromkeys(methods):
        if name not in registry.METHODS:
            near = difflib.get_close_matches(name, registry.METHODS, n=1, cutoff=0.0)
            problems.append(f"optimize.methods names {name!r}, which is no method (did you mean {near[0]}?)")
        if methods.count(name) > 1:
            problems.append(f"optimize.methods names {name} twice: a method has one folder in a run; keep one")
    each, count = cfg.rollout.samples_per_prompt, cfg.rollout.rollouts
    comparing = [name for name in methods if name in registry.GROUP_METHODS]
    if comparing and each < 2:
        named = ", ".join(comparing)
        problems.append(
            f"optimize.methods has {named}: answers to one prompt are compared, set rollout.samples_per_prompt to 2 or more"
        )
    if count % each:
        wanted = max(1, round(count / each)) * each
        problems.append(
            f"rollout.rollouts is {count}, no multiple of rollout.samples_per_prompt, which is {each}: set it to {wanted}"
        )
    if cfg.optimize.rounds > registry.MOST_ROUNDS:
        problems.append(f"optimize.rounds is {cfg.optimize.rounds:,}: at most {registry.MOST_ROUNDS} are made; a few are enough")
    if "distill" in methods and not cfg.feedback.context_answers:
        problems.append("optimize.methods has distill, which learns context answers: set feedback.context_answers to 1 or more")
    if "bestofn" in methods and cfg.feedback.answers + cfg.feedback.context_answers < 2:
        problems.append("optimize.methods has bestofn, which picks one of several answers: set feedback.answers to 2 or more")
    ranks = cfg.feedback.readout == "likelihood" and cfg.feedback.judge in ("start", "base")
    if not cfg.feedback.answers:
        problems.append("feedback.answers is 0: at least one is sampled, to compare with; set it to 1 or more")
    answers = cfg.feedback.answers + cfg.feedback.context_answers
    if "bestofn" in methods and not ranks and cfg.feedback.pairs_per_prompt < (pairs := answers * (answers - 1) // 2):
        problems.append(
            "optimize.methods has bestofn, and the judge compares two answers at a time: to know the best of"
            f" {answers}, set feedback.pairs_per_prompt to {pairs}, or feedback.readout to likelihood"
        )
    if cfg.feedback.context_answers and not cfg.feedback.context:
        problems.append("feedback.context_answers needs the descriptions: set feedback.context to true")
    return problems


def _reward_conflicts(cfg: Config) -> list[str]:
    """What is wrong with who scores the sampled answers."""
    reward, problems = cfg.optimize.reward, []
    if reward == "model":
        return []
    if reward not in ("judge", "rank") and not reward.endswith(".py"):
        near = difflib.get_close_matches(reward, ("model", "judge", "rank"), n=1, cutoff=0.0)
        problems.append(f"optimize.reward is {reward!r}: it must be model, judge, rank or FILE.py (did you mean {near[0]}?)")
    if not set(cfg.optimize.methods) & set(registry.SAMPLING):
        named = ", ".join(registry.SAMPLING)
        problems.append(f"optimize.reward is {reward}, but no method of optimize.methods samples answers; those that do: {named}")
    if cfg.reward.base:
        problems.append(f"optimize.reward is {reward}, so there is no reward model: leave reward.base empty")
    compares = cfg.feedback.readout != "likelihood" or cfg.feedback.judge not in ("start", "base")
    if cfg.rollout.samples_per_prompt < 2 and (reward == "rank" or (reward == "judge" and compares)):
        problems.append(
            f"optimize.reward is {reward}: answers to one prompt are compared, set rollout.samples_per_prompt to 2 or more"
        )
    return problems
