"""The tiny world: short clips with known events. Events, pixels, sentences, questions; no files, no models.

A clip is 2-4 events one after the other. An event takes one second: one object (a colour and a shape) does one thing.
Colours differ within a clip, so "the red circle" names one object. Everything is drawn from a numpy generator that the
caller passes, so the same seed always gives the same world.

Letters: N clips, F frames, S pixels of a side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FPS = 8  # source frames per second = frames per event
COLOURS = {
    "red": (230, 40, 40),
    "green": (40, 200, 60),
    "blue": (60, 90, 240),
    "yellow": (235, 220, 50),
    "white": (240, 240, 240),
    "purple": (190, 60, 220),
}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS = {
    "moves left": (-1.0, 0.0),
    "moves right": (1.0, 0.0),
    "moves up": (0.0, -1.0),
    "moves down": (0.0, 1.0),
    "stays still": (0.0, 0.0),
}
ORDINALS = ("first", "second", "third", "fourth")
NUMBERS = {2: "two", 3: "three", 4: "four"}
QUESTION_TYPES = ("ordinal", "after", "before", "direction", "count", "describe")
SEGMENT_QUESTION = "describe this part."  # the question about a single event


@dataclass(frozen=True)
class Event:
    """One object doing one thing for one second."""

    colour: str
    shape: str
    motion: str

    @property
    def noun(self) -> str:
        """The object without an article: "red circle"."""
        return f"{self.colour} {self.shape}"

    @property
    def sentence(self) -> str:
        """The event as a sentence."""
        return f"a {self.noun} {self.motion}."


@dataclass(frozen=True)
class Question:
    """A question about a clip with its true answer."""

    type: str  # one of QUESTION_TYPES
    text: str
    answer: str
    key: str  # the answer without the words of the question: what has to be guessed without frames


def draw_events(rng: np.random.Generator, count: int | None = None) -> tuple[Event, ...]:
    """`count` events (2 to 4 when None) with distinct colours."""
    count = int(rng.integers(2, 5)) if count is None else count
    colours = rng.permutation(list(COLOURS))[:count]
    shapes, motions = list(SHAPES), list(MOTIONS)
    return tuple(
        Event(str(colour), shapes[int(rng.integers(len(shapes)))], motions[int(rng.integers(len(motions)))]) for colour in colours
    )


def describe(events: Sequence[Event]) -> str:
    """The whole clip in order: "first a red circle moves left. second ..."."""
    return " ".join(f"{ORDINALS[i]} {event.sentence}" for i, event in enumerate(events))


def all_questions(events: Sequence[Event]) -> list[Question]:
    """Every question that can be asked about these events."""
    questions = [
        Question("count", "how many things happen?", f"{NUMBERS[len(events)]} things happen.", str(len(events))),
        Question("describe", "describe the video.", describe(events), describe(events)),
    ]
    for i, event in enumerate(events):
        questions.append(Question("ordinal", f"what happens {ORDINALS[i]}?", event.sentence, event.sentence))
        direction = f"the {event.noun} {event.motion}."
        questions.append(Question("direction", f"which way does the {event.noun} go?", direction, event.motion))
        if i + 1 < len(events):
            later = events[i + 1].sentence
            questions.append(Question("after", f"what happens after the {event.noun}?", later, later))
        if i > 0:
            earlier = events[i - 1].sentence
            questions.append(Question("before", f"what happens before the {event.noun}?", earlier, earlier))
    return questions


def draw_questions(rng: np.random.Generator, events: Sequence[Event], count: int) -> list[Question]:
    """`count` questions of different types (all six at most), one of each type drawn."""
    pool = all_questions(events)
    types = [str(t) for t in rng.permutation(list(QUESTION_TYPES))[:count]]
    chosen = []
    for kind in types:
        options = [q for q in pool if q.type == kind]
        chosen.append(options[int(rng.integers(len(options)))])
    return chosen


def render(rng: np.random.Generator, clips: Sequence[Sequence[Event]], size: int, frames: int = FPS) -> list[np.ndarray]:
    """Draw clips: one uint8 array [F, S, S, 3] each, F = frames x events. rng: start places, speeds, backgrounds and noise come
    from here; clips: the events of each; size: pixels of a side (S); frames: per event."""
    events = [event for clip in clips for event in clip]
    n = len(events)
    radius = rng.uniform(0.15, 0.2, (n, 1))
    length = rng.uniform(0.4, 0.5, (n, 1))  # way covered, in sides
    step = np.array([MOTIONS[e.motion] for e in events])  # [N, 2]
    centre = rng.uniform(0.4, 0.6, (n, 2))
    # A moving object crosses the middle; a still one may stand where a moving one would start or end.
    centre = np.where(step == 0, rng.uniform(0.25, 0.75, (n, 2)), centre)
    when = np.linspace(-0.5, 0.5, frames)
    places = centre[:, None, :] + step[:, None, :] * when[None, :, None] * length[:, None, :]  # [N, F, 2]
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    places, radius = places.astype(np.float32), radius.astype(np.float32)
    dx = axis[None, None, None, :] - places[:, :, 0, None, None]
    dy = axis[None, None, :, None] - places[:, :, 1, None, None]
    shape = np.array([SHAPES.index(e.shape) for e in events])
    distance = np.empty((n, frames, size, size), np.float32)
    for index, name in enumerate(SHAPES):
        rows = shape == index
        if rows.any():
            distance[rows] = _distance(name, dx[rows], dy[rows], radius[rows][:, :, None, None])
    cover = np.clip(0.5 - distance * size, 0.0, 1.0)[..., None]
    paint = (np.array([COLOURS[e.colour] for e in events]) * rng.uniform(0.85, 1.0, (n, 1))).astype(np.float32)
    # One background per clip.
    ground = np.repeat(rng.uniform(10, 50, (len(clips), 1)), [len(c) for c in clips], axis=0).astype(np.float32)
    noise = 3 * rng.standard_normal((n, frames, size, size, 1), np.float32)
    pixels = ground[:, None, None, None, :] * (1 - cover) + paint[:, None, None, None, :] * cover + noise
    frames_u8 = np.clip(pixels, 0, 255).astype(np.uint8)
    parts = np.split(frames_u8, np.cumsum([len(clip) for clip in clips])[:-1])
    return [part.reshape(-1, size, size, 3) for part in parts]


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Signed distance to the outline (negative inside), in sides; dx, dy broadcast to [N, F, S, S]."""
    if shape == "circle":
        return np.hypot(dx, dy) - r
    if shape == "square":
        return np.maximum(np.abs(dx), np.abs(dy)) - 0.85 * r
    if shape == "triangle":
        return np.maximum(0.87 * np.abs(dx) - 0.5 * dy - 0.5 * r, dy - 0.7 * r)
    arm = 0.32 * r
    across = np.maximum(np.abs(dx) - 1.1 * r, np.abs(dy) - arm)
    along = np.maximum(np.abs(dx) - arm, np.abs(dy) - 1.1 * r)
    return np.minimum(across, along)
